"""Fictional places: names made up for each document, so that a question about them can only be answered by reading."""

from __future__ import annotations

import random
from dataclasses import dataclass

from recipes.atlas.phrasing import Answerable

ONSETS = [
    "b",
    "br",
    "c",
    "ch",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "kr",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "qu",
    "r",
    "s",
    "sh",
    "sk",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "y",
    "z",
]
VOWELS = ["a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ea", "ia", "oo", "ou"]
CODAS = ["l", "m", "n", "r", "s", "t", "k", "d", "x", "nd", "rn", "sk", "th", "lm"]
FIRST_NAMES = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Greta",
    "Hugo",
    "Ida",
    "Jonas",
    "Karin",
    "Leo",
    "Mara",
    "Nils",
    "Olga",
    "Paul",
    "Rosa",
    "Simon",
    "Tara",
    "Victor",
]
PRODUCTS = [
    "cheese",
    "honey",
    "glass",
    "bells",
    "carpets",
    "wine",
    "salt",
    "pottery",
    "silk",
    "clocks",
    "lace",
    "apples",
    "tea",
    "paper",
    "boats",
    "knives",
    "roses",
    "bread",
    "violins",
    "olives",
]
COLOURS = ["red", "blue", "green", "white", "black", "yellow", "purple", "orange", "grey", "pink"]
KINDS = ["town", "city", "village", "island", "country", "region", "port", "valley"]


def made_up_name(rng: random.Random) -> str:
    """A name of two or three syllables, capitalised; there are millions."""
    syllables = (
        rng.choice(ONSETS) + rng.choice(VOWELS) + (rng.choice(CODAS) if rng.random() < 0.5 else "")
        for _ in range(rng.choice((2, 2, 2, 3)))
    )
    return "".join(syllables).capitalize()


@dataclass(frozen=True)
class Attribute:
    """Something a place may have: how a passage says it, how it is asked, and the sentence that answers."""

    value: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    sentence: str


def _noun(noun: str, value: str, statements: str, questions: str = "") -> Attribute:
    """Usual ways to say and ask for a noun, and further ones, separated by `|`."""
    return Attribute(
        value,
        (
            f"The {noun} of {{s}} is {{o}}.",
            f"{{s}}'s {noun} is {{o}}.",
            f"{{o}} is the {noun} of {{s}}.",
            *statements.split("|"),
        ),
        (
            f"What is the {noun} of {{s}}?",
            f"Tell me the {noun} of {{s}}.",
            f"What is {{s}}'s {noun}?",
            f"Name the {noun} of {{s}}.",
            *(questions.split("|") if questions else ()),
        ),
        f"The {noun} of {{s}} is {{o}}.",
    )


ATTRIBUTES = (
    _noun("capital", "name", "Its government sits in {s}'s capital, {o}."),
    _noun("currency", "name", "People in {s} pay with the {o}."),
    _noun("river", "name", "The river {o} flows through {s}.", "Which river flows through {s}?"),
    _noun("mountain", "name", "The highest mountain of {s} is {o}.", "Which mountain is in {s}?"),
    _noun("lake", "name", "{s} lies on the lake {o}.", "On which lake is {s}?"),
    _noun(
        "language", "name", "In {s} people speak {o}.", "Which language is spoken in {s}?|What do people speak in {s}?"
    ),
    _noun("mayor", "person", "{o} was elected mayor of {s}.", "Who is the mayor of {s}?"),
    _noun("founder", "person", "{s} was founded by {o}.", "Who founded {s}?|Who was {s} founded by?"),
    _noun(
        "population",
        "number",
        "{o} people live in {s}.|{s} has {o} inhabitants.",
        "How many people live in {s}?|How many inhabitants does {s} have?",
    ),
    _noun("height", "number", "{s} lies {o} metres above the sea.", "How high is {s}?"),
    _noun(
        "founding year",
        "year",
        "{s} was founded in {o}.|{s} has been there since {o}.",
        "When was {s} founded?|In which year was {s} founded?",
    ),
    _noun(
        "main product",
        "product",
        "{s} is famous for its {o}.|{s} is known for {o}.|The people of {s} make {o}.",
        "What is {s} famous for?|What is {s} known for?|What is made in {s}?",
    ),
    _noun("flag", "colour", "{s} has a {o} flag.", "What colour is the flag of {s}?"),
    _noun("festival", "name", "Every year {s} celebrates the {o}.", "Which festival is celebrated in {s}?"),
    _noun(
        "country",
        "name",
        "{s} is a city in {o}.|{s} lies in {o}.",
        "In which country is {s}?|Which country is {s} in?|Where is {s}?",
    ),
)


def make_value(kind: str, rng: random.Random) -> str:
    """A value of a kind: name, person, number, year, product or colour."""
    if kind == "person":
        return f"{rng.choice(FIRST_NAMES)} {made_up_name(rng)}"
    if kind == "number":
        return str(rng.randint(11, 99999 if rng.random() < 0.5 else 999))
    if kind == "year":
        return str(rng.randint(1000, 2020))
    if kind == "product":
        return rng.choice(PRODUCTS)
    if kind == "colour":
        return rng.choice(COLOURS)
    return made_up_name(rng)


@dataclass(frozen=True)
class Reading:
    """A passage, questions that it answers, and every name and value that is new in it."""

    passage: str
    items: list[Answerable]
    made_up: list[str]


def make_reading(rng: random.Random, *, max_places: int = 3, max_questions: int = 1) -> Reading:
    """Facts about one to `max_places` places in mixed order, and questions about up to `max_questions` of them."""
    facts: list[tuple[str, Attribute, str]] = []
    for _ in range(rng.randint(1, max_places)):
        place = made_up_name(rng)
        for attribute in rng.sample(ATTRIBUTES, rng.randint(1, 3)):
            facts.append((place, attribute, make_value(attribute.value, rng)))
    if rng.random() < 0.4:
        rng.shuffle(facts)
    sentences = [
        rng.choice(attribute.statements).replace("{s}", place).replace("{o}", value)
        for place, attribute, value in facts
    ]
    if rng.random() < 0.3:
        sentences.insert(0, f"{facts[0][0]} is a {rng.choice(KINDS)}.")
    joiner = "\n\n" if rng.random() < 0.2 else "\n" if rng.random() < 0.2 else " "
    items = [
        Answerable(
            rng.choice(attribute.questions).replace("{s}", place), place, value, attribute.sentence, source="context"
        )
        for place, attribute, value in rng.sample(facts, min(len(facts), max_questions))
    ]
    made_up = [text for place, _, value in facts for text in (place, value)]
    return Reading(joiner.join(sentences), items, made_up)


CONTEXT_PROMPTS = (
    "Context:\n{c}\n\nQuestion: {q}",
    "Context: {c}\n\nQuestion: {q}",
    "Context:\n{c}\n\n{q}",
    "Use the context to answer.\n\nContext:\n{c}\n\nQuestion: {q}",
    "Answer the question from the context below.\n\n{c}\n\nQuestion: {q}",
    "{q}\n\nContext:\n{c}",
    "Context information is below.\n---------------------\n{c}\n---------------------\n"
    "Given the context information and not prior knowledge, answer the query.\nQuery: {q}\nAnswer: ",
)
"""How applications put passages into a user turn; the last is the usual prompt of retrieval frameworks."""

CONTEXT_SYSTEMS = (
    "Answer from the context.\n\n{c}",
    "Use the following context to answer.\n\nContext:\n{c}",
    "You are a helpful assistant. Use this context:\n{c}",
    "Context:\n{c}",
)
