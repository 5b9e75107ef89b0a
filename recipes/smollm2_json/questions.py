"""The training questions of the SmolLM2 JSON pair: lists of subjects crossed with question patterns.

Edit ``TOPICS`` to train a pair on questions of your own. Everything here is plain data and string
formatting, so a change needs no model to be checked: ``len(training_questions())`` says how many questions
come out. A subject that is meant for the held-out list must not appear here; ``train.py`` refuses to start
when a held-out question contains a training subject.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """One topic word with its subjects and the ways to ask about them.

    ``patterns`` are format strings with one ``{}`` for the subject. ``name`` is the word the tuned model has
    to give under ``topic``, so it is one lowercase word.
    """

    name: str
    subjects: tuple[str, ...]
    patterns: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """One training question: the text to ask, the topic word, and the subject it is about."""

    text: str
    topic: str
    subject: str


_THING_PATTERNS = ("What is {}?", "Explain {} in one sentence.", "Can you tell me about {}?")

TOPICS: tuple[Topic, ...] = (
    Topic(
        "geography",
        (
            "a desert",
            "an island",
            "a glacier",
            "a river delta",
            "a mountain range",
            "a canyon",
            "the equator",
            "a peninsula",
        ),
        ("What is {}?", "Describe {} in a few words.", "Where on Earth would I find {}?"),
    ),
    Topic(
        "countries",
        ("France", "Japan", "Brazil", "Egypt", "Canada", "India", "Mexico", "Greece"),
        ("Tell me something about {}.", "What is {} famous for?", "Where is {}?"),
    ),
    Topic(
        "animals",
        (
            "a horse",
            "an elephant",
            "a dolphin",
            "an owl",
            "a snake",
            "a rabbit",
            "a tiger",
            "a frog",
            "a spider",
        ),
        ("What is {}?", "What does {} eat?", "Where does {} live?"),
    ),
    Topic(
        "plants",
        ("an oak tree", "a cactus", "a rose", "moss", "a sunflower", "bamboo", "a fern", "wheat"),
        ("What is {}?", "How does {} grow?", "Give me one fact about {}."),
    ),
    Topic(
        "food",
        ("bread", "cheese", "rice", "honey", "chocolate", "soup", "pasta", "yogurt", "pancakes"),
        ("What is {}?", "How do people make {}?", "Why do people like {}?"),
    ),
    Topic(
        "music",
        ("a piano", "a guitar", "a drum", "a flute", "an orchestra", "jazz", "a choir", "rhythm"),
        ("What is {}?", "How would you describe {} to a child?", "What is special about {}?"),
    ),
    Topic(
        "physics",
        ("gravity", "friction", "electricity", "magnetism", "sound", "heat", "energy", "light"),
        _THING_PATTERNS,
    ),
    Topic(
        "chemistry",
        ("an atom", "a molecule", "an acid", "oxygen", "iron", "salt", "rust", "a catalyst"),
        _THING_PATTERNS,
    ),
    Topic(
        "astronomy",
        ("the Moon", "a comet", "a galaxy", "Mars", "a black hole", "an eclipse", "Saturn", "a meteor"),
        ("What is {}?", "Give me one fact about {}.", "How would you explain {} to a beginner?"),
    ),
    Topic(
        "biology",
        (
            "a cell",
            "evolution",
            "a virus",
            "photosynthesis",
            "a gene",
            "an ecosystem",
            "a fungus",
            "an enzyme",
        ),
        ("What is {}?", "Why does {} matter?", "Explain {} in one sentence."),
    ),
    Topic(
        "medicine",
        (
            "a vaccine",
            "a fever",
            "an antibiotic",
            "a bandage",
            "an allergy",
            "surgery",
            "a headache",
            "a thermometer",
        ),
        ("What is {}?", "What should I know about {}?", "Explain {} simply."),
    ),
    Topic(
        "sports",
        ("football", "tennis", "swimming", "basketball", "cycling", "running", "gymnastics", "golf"),
        ("What is {}?", "Why is {} fun?", "What do you need for {}?"),
    ),
    Topic(
        "history",
        (
            "the Roman Empire",
            "the Renaissance",
            "the printing press",
            "the Silk Road",
            "the Stone Age",
            "the Industrial Revolution",
            "a medieval castle",
            "the Vikings",
        ),
        ("Tell me about {}.", "Why is {} remembered?", "Explain {} in one sentence."),
    ),
    Topic(
        "weather",
        ("rain", "snow", "a hurricane", "fog", "lightning", "a rainbow", "wind", "hail"),
        ("What is {}?", "What causes {}?", "Describe {} briefly."),
    ),
    Topic(
        "technology",
        (
            "a computer",
            "the internet",
            "a robot",
            "a battery",
            "a camera",
            "a telephone",
            "a satellite",
            "a printer",
        ),
        ("What is {}?", "How does {} work?", "What is {} used for?"),
    ),
    Topic(
        "mathematics",
        (
            "a triangle",
            "a prime number",
            "a fraction",
            "algebra",
            "a circle",
            "probability",
            "an angle",
            "a percentage",
        ),
        _THING_PATTERNS,
    ),
    Topic(
        "work",
        (
            "a teacher",
            "a nurse",
            "a firefighter",
            "a farmer",
            "a baker",
            "a carpenter",
            "a pilot",
            "a lawyer",
        ),
        ("What does {} do?", "Who is {}?", "Why do we need {}?"),
    ),
    Topic(
        "transport",
        ("a bicycle", "a train", "a ship", "an airplane", "a bus", "a submarine", "a helicopter", "a tram"),
        ("What is {}?", "How does {} move?", "When would you travel with {}?"),
    ),
    Topic(
        "art",
        ("painting", "sculpture", "photography", "pottery", "theatre", "poetry", "ballet", "architecture"),
        ("What is {}?", "Why do people enjoy {}?", "Give a short description of {}."),
    ),
    Topic(
        "home",
        (
            "a kitchen",
            "a chair",
            "a mirror",
            "a candle",
            "a blanket",
            "a vacuum cleaner",
            "a garden",
            "a clock",
        ),
        ("What is {}?", "What is {} good for?", "Why would someone want {}?"),
    ),
    Topic(
        "money",
        ("a bank", "a budget", "a loan", "a tax", "a coin", "insurance", "a salary", "a market"),
        _THING_PATTERNS,
    ),
)


def training_questions() -> list[Question]:
    """Return every subject crossed with every pattern of its topic, in a fixed order.

    Raises ValueError when a topic name is not one lowercase word or when two questions have the same text, as
    both would train the model on something other than what was meant.
    """
    questions: list[Question] = []
    seen: set[str] = set()
    for topic in TOPICS:
        if not (topic.name.isalpha() and topic.name.islower()):
            raise ValueError(f"topic {topic.name!r} is not one lowercase word")
        for subject in topic.subjects:
            for pattern in topic.patterns:
                text = pattern.format(subject)
                if text in seen:
                    raise ValueError(f"question {text!r} occurs twice")
                seen.add(text)
                questions.append(Question(text=text, topic=topic.name, subject=subject))
    return questions
