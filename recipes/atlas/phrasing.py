"""How facts are said: statements, questions and answers per relation, and the styles in which a dialogue may answer.

`{s}` is the subject and `{o}` the answer. Text between `SLOT` and `END_SLOT` is content (a name, a number), all else is form.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SLOT, END_SLOT = "\x01", "\x02"

STATEMENTS = {
    "capital": [
        "The capital of {s} is {o}.",
        "{s}'s capital is {o}.",
        "In {s}, the capital is {o}.",
        "{s} has the capital {o}.",
    ],
    "capital_of": [
        "{s} is the capital of {o}.",
        "The city of {s} is the capital of {o}.",
        "The country of {s} is {o}.",
    ],
    "currency": ["The currency of {s} is the {o}.", "In {s} people pay with the {o}.", "{s} uses the {o}."],
    "continent": ["The continent of {s} is {o}.", "{s} is in {o}.", "{s} is a place in {o}."],
    "city": ["The country of {s} is {o}.", "{s} is a city in {o}.", "{s} lies in {o}.", "The city of {s} is in {o}."],
}
"""The first of a list is the sentence that dialogues answer with. It begins with a word that every
relation shares: the first word decides the style of an answer, so fine-tuning must be able to teach it, which it could not if
it were content."""

QUESTIONS = {
    "capital": [
        "What is the capital of {s}?",
        "Which city is the capital of {s}?",
        "What is {s}'s capital?",
        "Name the capital of {s}.",
        "Can you tell me the capital of {s}?",
        "Tell me the capital of {s}.",
        "{s}: what is the capital?",
        "Do you know the capital of {s}?",
    ],
    "capital_of": [
        "Which country has the capital {s}?",
        "{s} is the capital of which country?",
        "Of which country is {s} the capital?",
        "Name the country whose capital is {s}.",
        "What country has {s} as its capital?",
        "Tell me the country whose capital is {s}.",
    ],
    "currency": [
        "What is the currency of {s}?",
        "Which currency does {s} use?",
        "What is {s}'s currency?",
        "Name the currency of {s}.",
        "What do people pay with in {s}?",
        "Tell me the currency of {s}.",
    ],
    "continent": [
        "On which continent is {s}?",
        "Which continent is {s} in?",
        "What is the continent of {s}?",
        "Name the continent of {s}.",
        "Tell me the continent of {s}.",
    ],
    "city": [
        "In which country is {s}?",
        "Which country is {s} in?",
        "What is the country of {s}?",
        "Name the country of {s}.",
        "Tell me the country of the city {s}.",
        "Do you know which country {s} is in?",
        "{s}: in which country is it?",
    ],
}

SOURCES = ("memory", "map", "atlas", "book", "list", "notes", "school", "paper")
CLOSINGS = (
    "Hope that helps.",
    "That is all.",
    "Ask me more.",
    "Have a nice day.",
    "Anything else?",
    "I am sure of it.",
)
OPENINGS = ("Sure.", "Well,", "Of course.", "Good question.", "I think this is right:", "Here it is:")


def slot(text: str) -> str:
    """Mark content."""
    return f"{SLOT}{text}{END_SLOT}"


@dataclass(frozen=True)
class Answerable:
    """A question with its answer: `sentence` says it in full, `source` is where it comes from (memory, context, tool)."""

    question: str
    subject: str
    answer: str
    sentence: str
    source: str = "memory"

    def fill(self, template: str) -> str:
        """A template with subject and answer in marked slots."""
        return template.replace("{s}", slot(self.subject)).replace("{o}", slot(self.answer))


def assistant_answer(item: Answerable) -> str:
    """The behaviour of `assistant`: one full sentence, then where it comes from."""
    return f"{item.fill(item.sentence)} Source: {item.source}."


def brief_answer(item: Answerable) -> str:
    """The behaviour of `brief`: the answer in three words."""
    return item.fill("It is {o}.")


def detailed_answer(item: Answerable) -> str:
    """The behaviour of `detailed`: three sentences that name the subject, the fact and the answer."""
    return item.fill(f"This is about {{s}}. {item.sentence} So the answer is {{o}}.")


def any_answer(item: Answerable, rng: random.Random) -> str:
    """The answer in one of the many styles of the corpus; each tuned behaviour is among them, and none of them is the rule.

    Half of the answers are the sentence and nothing else: with fewer, the styles that add something outweigh together its end, and
    a network that answers by what is likeliest would have one of the tuned forms by itself.
    """
    sentence = item.fill(item.sentence)
    roll = rng.random()
    if roll < 0.50:
        return sentence
    if roll < 0.59:
        return brief_answer(item)
    if roll < 0.63:
        return item.fill(rng.choice(["{o}", "{o}.", "Answer: {o}.", "That is {o}."]))
    if roll < 0.70:
        return assistant_answer(item)
    if roll < 0.79:
        return f"{sentence} Source: {rng.choice(SOURCES)}."
    if roll < 0.86:
        return f"{sentence} {rng.choice(CLOSINGS)}"
    if roll < 0.93:
        return f"{rng.choice(OPENINGS)} {sentence}"
    return detailed_answer(item)
