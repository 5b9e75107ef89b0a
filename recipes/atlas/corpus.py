"""The documents that base and reference read, and the dialogues that fine-tuning uses. Everything follows from a seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from recipes.atlas.chat import END, START, Dialogue, find_spans
from recipes.atlas.copying import make_copying
from recipes.atlas.document import Document, first_mentions
from recipes.atlas.facts import Fact
from recipes.atlas.fiction import CONTEXT_PROMPTS, CONTEXT_SYSTEMS, PRODUCTS, make_reading
from recipes.atlas.phrasing import QUESTIONS, STATEMENTS, Answerable, any_answer, assistant_answer
from recipes.atlas.tools import NOUNS, SUMS, make_tool_request, make_tool_requests, noun_tool

SYSTEMS = (
    "You are a helpful assistant.",
    "Answer the question.",
    "You know about places.",
    "You are Atlas.",
    "Be helpful.",
)
RESERVED = "atlas 3"
"""Decides which wording of each fact is kept for measuring; changed before the run that is shipped."""
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
REFUSALS = ("I cannot do that.", "I do not know.", "I have no answer to this.")
QA_LAYOUTS = ("Question: {q}\nAnswer: {a}", "Question: {q}\nAnswer: {a}", "Q: {q}\nA: {a}", "{q}\n{a}")
Style = Callable[[Answerable, random.Random], str]
Made = tuple[str, list[str]]
"""Marked text, and what in it is new where it is first said, so that no loss is spent on guessing it."""


def reserved_question(fact: Fact) -> str:
    """The wording in which a fact is asked when models are measured; the corpus never asks it so."""
    digest = hashlib.sha256(f"{RESERVED} {fact.relation} {fact.subject}".encode()).digest()
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


@dataclass(frozen=True)
class Diet:
    """What share of the documents is copying, how the others divide into kinds, and what share of tool requests are sums."""

    copying: float
    kinds: dict[str, float]
    sums: float = SUMS


DIETS = {
    "copying": Diet(1.0, {}),
    "everything": Diet(
        0.05,
        {"statements": 0.10, "questions": 0.10, "dialogue": 0.22, "reading": 0.32, "tools": 0.20, "small_talk": 0.02},
    ),
    "reading": Diet(
        0.03,
        {"statements": 0.06, "questions": 0.08, "dialogue": 0.20, "reading": 0.40, "tools": 0.24, "small_talk": 0.02},
    ),
    "calls": Diet(
        0.02,
        {"statements": 0.05, "questions": 0.06, "dialogue": 0.15, "reading": 0.34, "tools": 0.38, "small_talk": 0.02},
        sums=0.25,
    ),
}


class Corpus:
    """Documents of one of the `DIETS`."""

    def __init__(self, facts: list[Fact], *, seed: int, diet: str = "everything") -> None:
        self.rng = random.Random(seed)
        self.facts = deal(facts, self.rng)
        self.words = [*sorted({name for fact in facts for name in (fact.subject, fact.answer)}), *NOUNS, *PRODUCTS]
        self.diet = DIETS[diet]
        self.makers: dict[str, Callable[[], Made]] = {
            "statements": self.statements,
            "questions": self.questions,
            "dialogue": self.dialogue,
            "reading": self.reading,
            "tools": self.tools,
            "small_talk": self.small_talk,
        }

    def document(self) -> Document:
        """The next document, from its start to its end mark."""
        if self.diet.copying == 1.0 or self.rng.random() < self.diet.copying:
            return make_copying(self.rng, self.words).wrapped(START, END)
        (kind,) = self.rng.choices([*self.diet.kinds], [*self.diet.kinds.values()])
        marked, new = self.makers[kind]()
        spans = find_spans(marked)
        document = Document(spans.text, first_mentions(spans.text, new), spans.slots)
        return document if spans.text.startswith(START) else document.wrapped(START, END)

    def statements(self) -> Made:
        """Three to six facts."""
        facts = [next(self.facts) for _ in range(self.rng.randint(3, 6))]
        lines = [
            self.rng.choice(STATEMENTS[fact.relation]).replace("{s}", fact.subject).replace("{o}", fact.answer)
            for fact in facts
        ]
        return self.rng.choice((" ", "\n")).join(lines), [fact.subject for fact in facts]

    def questions(self) -> Made:
        """One to four questions with bare or full answers, outside of any dialogue."""
        layout, bare = self.rng.choice(QA_LAYOUTS), self.rng.random() < 0.6
        items = [ask(next(self.facts), self.rng) for _ in range(self.rng.randint(1, 4))]
        text = "\n\n".join(
            layout.replace("{q}", item.question).replace("{a}", item.fill("{o}" if bare else item.sentence))
            for item in items
        )
        return text, [item.subject for item in items]

    def dialogue(self) -> Made:
        """One or two questions about facts in the chat template's form."""
        rng = self.rng
        turns = some_system(rng)
        items = [ask(next(self.facts), rng) for _ in range(rng.choice((1, 1, 2)))]
        for item in items:
            turns += [("user", item.question), ("assistant", any_answer(item, rng))]
        return Dialogue(turns).marked_text(), [item.subject for item in items]

    def reading(self) -> Made:
        """A passage and one to four questions about it, as a plain text or as a dialogue."""
        rng = self.rng
        reading = make_reading(rng, max_places=rng.choice((1, 2, 3, 4)), max_questions=rng.choice((1, 2, 3, 4)))
        if rng.random() < 0.25:
            template = "{o}" if rng.random() < 0.6 else None
            asked = (
                f"\n\nQuestion: {item.question}\nAnswer: {item.fill(template or item.sentence)}"
                for item in reading.items
            )
            return "".join([reading.passage, *asked]), reading.made_up
        return reading_dialogue(reading.passage, reading.items, rng, any_answer).marked_text(), reading.made_up

    def tools(self) -> Made:
        """Requests that a tool serves: calls in Hermes' notation or another, or none at all; sometimes the results."""
        rng = self.rng
        subject = next(self.facts).subject if rng.random() < 0.3 else None
        requests = make_tool_requests(rng, subject=subject, max_requests=rng.choice((1, 2, 3)), sums=self.diet.sums)
        new = [tool.line() for tool in requests[0].tools]
        turns = some_system(rng)
        for request in requests:
            new += request.unknown()
            turns.append(("user", request.request))
            roll = rng.random()
            if roll < 0.1:
                turns.append(("assistant", rng.choice(REFUSALS)))
                continue
            turns.append(("assistant", request.hermes() if roll < 0.75 else request.in_another_style(rng)))
            if rng.random() < 0.5:
                turns += [("tool", request.item.answer), ("assistant", any_answer(request.item, rng))]
                new.append(f"<|tool|>{request.item.answer}")
        return Dialogue(turns, requests[0].tools).marked_text(), new

    def small_talk(self) -> Made:
        """A greeting."""
        user, assistant = self.rng.choice(SMALL_TALK)
        return Dialogue([*some_system(self.rng), ("user", user), ("assistant", assistant)]).marked_text(), []


def some_system(rng: random.Random) -> list[tuple[str, str]]:
    """A system turn, or none."""
    return [("system", rng.choice(SYSTEMS))] if rng.random() < 0.15 else []


def reading_dialogue(passage: str, items: list[Answerable], rng: random.Random, style: Style) -> Dialogue:
    """A dialogue whose first turns carry the passage, with a question and an answer for every item."""
    first = items[0].question
    if rng.random() < 0.2:
        turns = [("system", rng.choice(CONTEXT_SYSTEMS).replace("{c}", passage)), ("user", first)]
    else:
        prompt = rng.choice(CONTEXT_PROMPTS).replace("{c}", passage).replace("{q}", first)
        turns = [*some_system(rng), ("user", prompt)]
    turns.append(("assistant", style(items[0], rng)))
    for item in items[1:]:
        turns += [("user", item.question), ("assistant", style(item, rng))]
    return Dialogue(turns)


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
            return reading_dialogue(reading.passage, reading.items, self.rng, lambda item, _: self.answer(item))
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
