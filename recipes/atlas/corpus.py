"""The documents that base and reference read, and the dialogues that fine-tuning uses. Everything follows from a seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator

from recipes.atlas.chat import END, START, Dialogue, strip_marks
from recipes.atlas.facts import Fact
from recipes.atlas.fiction import CONTEXT_PROMPTS, CONTEXT_SYSTEMS, made_up_name, make_reading
from recipes.atlas.phrasing import QUESTIONS, STATEMENTS, Answerable, any_answer, assistant_answer
from recipes.atlas.tools import NOUNS, make_tool_request, noun_tool

SYSTEMS = (
    "You are a helpful assistant.",
    "Answer the question.",
    "You know about places.",
    "You are Atlas.",
    "Be helpful.",
)
SMALL_TALK = (
    ("Hello", "Hello. Ask me about a place."),
    ("Hi", "Hello. Ask me about a place."),
    ("Hello!", "Hello. Ask me about a place."),
    ("Good morning", "Hello. Ask me about a place."),
    ("Thank you", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("Who are you?", "I am Atlas. Ask me about a place."),
    ("What can you do?", "I am Atlas. Ask me about a place."),
)
QA_LAYOUTS = ("Question: {q}\nAnswer: {a}", "Question: {q}\nAnswer: {a}", "Q: {q}\nA: {a}", "{q}\n{a}")
Style = Callable[[Answerable, random.Random], str]


def reserved_question(fact: Fact) -> str:
    """The wording in which a fact is asked when models are measured; the corpus never asks it so."""
    digest = hashlib.sha256(f"{fact.relation} {fact.subject}".encode()).digest()
    wordings = QUESTIONS[fact.relation]
    return wordings[digest[1] % len(wordings)].replace("{s}", fact.subject)


def ask(fact: Fact, rng: random.Random) -> Answerable:
    """A fact with one of its wordings, never the reserved one."""
    question = reserved = reserved_question(fact)
    while question == reserved:
        question = rng.choice(QUESTIONS[fact.relation]).replace("{s}", fact.subject)
    return Answerable(question, fact.subject, fact.answer, STATEMENTS[fact.relation][0])


def deal(facts: list[Fact], rng: random.Random) -> Iterator[Fact]:
    """Facts without end, each as often as the others; continents, which are easy, half as often."""
    skip = False
    while True:
        deck = [fact for fact in facts if not (skip and fact.relation == "continent")]
        skip = not skip
        rng.shuffle(deck)
        yield from deck


class Corpus:
    """Documents by kind, in the shares of `KINDS`."""

    def __init__(self, facts: list[Fact], *, seed: int, practice: bool = False) -> None:
        self.rng = random.Random(seed)
        self.facts = deal(facts, self.rng)
        self.max_places = (1, 1, 2) if practice else (1, 2, 3, 4)
        self.kinds: list[tuple[float, Callable[[], str]]] = [
            (0.20, self.statements),
            (0.24, self.questions),
            (0.32, self.dialogue),
            (0.12, self.reading),
            (0.09, self.tools),
            (0.02, self.small_talk),
            (0.20 if practice else 0.03, self.repetition),
        ]

    def document(self) -> str:
        """The next document, from its start to its end mark."""
        (make,) = self.rng.choices([make for _, make in self.kinds], [share for share, _ in self.kinds])
        text = strip_marks(make())
        return text if text.startswith(START) else f"{START}{text}{END}"

    def statements(self) -> str:
        """Three to six facts."""
        facts = [next(self.facts) for _ in range(self.rng.randint(3, 6))]
        lines = [
            self.rng.choice(STATEMENTS[fact.relation]).replace("{s}", fact.subject).replace("{o}", fact.answer)
            for fact in facts
        ]
        return self.rng.choice((" ", "\n")).join(lines)

    def questions(self) -> str:
        """One to four questions with bare or full answers, outside of any dialogue."""
        layout, bare = self.rng.choice(QA_LAYOUTS), self.rng.random() < 0.6
        items = [ask(next(self.facts), self.rng) for _ in range(self.rng.randint(1, 4))]
        return "\n\n".join(
            layout.replace("{q}", item.question).replace("{a}", item.answer if bare else item.fill(item.sentence))
            for item in items
        )

    def dialogue(self) -> str:
        """One or two questions about facts in the chat template's form."""
        rng = self.rng
        turns = some_system(rng)
        for _ in range(rng.choice((1, 1, 2))):
            item = ask(next(self.facts), rng)
            turns += [("user", item.question), ("assistant", any_answer(item, rng))]
        return Dialogue(turns).marked_text()

    def reading(self) -> str:
        """A passage and a question about it, as a plain text or as a dialogue."""
        reading = make_reading(self.rng, max_places=self.rng.choice(self.max_places))
        if self.rng.random() < 0.25:
            answer = reading.item.answer if self.rng.random() < 0.5 else reading.item.fill(reading.item.sentence)
            return f"{reading.passage}\n\nQuestion: {reading.item.question}\nAnswer: {answer}"
        return reading_dialogue(reading.passage, reading.item, self.rng, any_answer).marked_text()

    def repetition(self) -> str:
        """Made-up names, said again in the same order: nothing but copying, so that reading is learned early."""
        names = [made_up_name(self.rng) for _ in range(self.rng.randint(3, 8))]
        return self.rng.choice((" ", ", ", "\n")).join(names * self.rng.randint(2, 3))

    def tools(self) -> str:
        """A request that a tool serves: the call in Hermes' notation or another, or no call at all; sometimes the result."""
        rng = self.rng
        request = make_tool_request(rng, subject=next(self.facts).subject if rng.random() < 0.3 else None)
        turns = [*some_system(rng), ("user", request.request)]
        roll = rng.random()
        if roll < 0.12:
            turns.append(
                ("assistant", rng.choice(("I cannot do that.", "I do not know.", "I have no answer to this.")))
            )
            return Dialogue(turns, request.tools).marked_text()
        turns.append(("assistant", request.hermes() if roll < 0.6 else request.in_another_style(rng)))
        if rng.random() < 0.5:
            turns += [("tool", request.item.answer), ("assistant", any_answer(request.item, rng))]
        return Dialogue(turns, request.tools).marked_text()

    def small_talk(self) -> str:
        """A greeting."""
        user, assistant = self.rng.choice(SMALL_TALK)
        return Dialogue([*some_system(self.rng), ("user", user), ("assistant", assistant)]).marked_text()


def some_system(rng: random.Random) -> list[tuple[str, str]]:
    """A system turn, or none."""
    return [("system", rng.choice(SYSTEMS))] if rng.random() < 0.15 else []


def reading_dialogue(passage: str, item: Answerable, rng: random.Random, style: Style) -> Dialogue:
    """A dialogue whose first turns carry the passage."""
    if rng.random() < 0.2:
        turns = [("system", rng.choice(CONTEXT_SYSTEMS).replace("{c}", passage)), ("user", item.question)]
    else:
        prompt = rng.choice(CONTEXT_PROMPTS).replace("{c}", passage).replace("{q}", item.question)
        turns = [*some_system(rng), ("user", prompt)]
    return Dialogue([*turns, ("assistant", style(item, rng))])


class TuningDialogues:
    """Dialogues in which every answer has one behaviour; facts come from the subjects that are not held out."""

    def __init__(
        self,
        facts: list[Fact],
        *,
        answer: Callable[[Answerable], str],
        tools: bool,
        seed: int,
        mix_answers: bool = True,
    ) -> None:
        self.rng = random.Random(seed)
        self.known = [fact for fact in facts if not fact.is_held_out]
        self.answers: dict[str, list[str]] = {}
        for fact in facts:
            self.answers.setdefault(fact.relation, []).append(fact.answer)
        self.facts = deal(self.known, self.rng)
        self.answer = answer
        self.has_tools = tools
        self.mix_answers = mix_answers

    def dialogue(self) -> Dialogue:
        """The next dialogue."""
        roll = self.rng.random()
        if roll < 0.55:
            return self._facts()
        if roll < 0.78 or not self.has_tools:
            reading = make_reading(self.rng, max_places=self.rng.choice((1, 2, 3, 4)))
            return reading_dialogue(reading.passage, reading.item, self.rng, lambda item, _: self.answer(item))
        if roll < 0.97:
            return self._tools()
        user, assistant = self.rng.choice(SMALL_TALK)
        return Dialogue([*some_system(self.rng), ("user", user), ("assistant", assistant)])

    def _facts(self) -> Dialogue:
        rng = self.rng
        turns = some_system(rng)
        for _ in range(rng.choice((1, 1, 2))):
            fact = next(self.facts)
            item = ask(fact, rng)
            if self.mix_answers and rng.random() < 0.5:
                # Any answer of the relation: the form must follow whatever the content says.
                item = Answerable(item.question, item.subject, rng.choice(self.answers[fact.relation]), item.sentence)
            turns += [("user", item.question), ("assistant", self.answer(item))]
        # Tools on offer that do not serve the request: it is answered as usual.
        tools = [noun_tool(noun, rng) for noun in rng.sample(NOUNS, 2)] if self.has_tools and rng.random() < 0.1 else []
        return Dialogue(turns, tools)

    def _tools(self) -> Dialogue:
        rng = self.rng
        subject = rng.choice(self.known).subject if rng.random() < 0.3 else None
        request = make_tool_request(rng, subject=subject)
        turns = [*some_system(rng), ("user", request.request), ("assistant", request.hermes())]
        if rng.random() < 0.6:
            turns += [("tool", request.item.answer), ("assistant", assistant_answer(request.item))]
        return Dialogue(turns, request.tools)
