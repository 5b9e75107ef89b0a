"""Questions about passages that nobody can know: places, people and numbers are made up."""

from __future__ import annotations

import random
from dataclasses import dataclass

PLACES = (
    "Velmark",
    "Osterfjell",
    "Quenby Hollow",
    "Tarrasin",
    "Lower Ashpool",
    "Nimrodel Bay",
    "Caldera Point",
    "Wrenfold",
)
THINGS = (
    "observatory",
    "lighthouse",
    "library",
    "glassworks",
    "harbour museum",
    "clock tower",
    "tannery",
    "botanical garden",
)
PEOPLE = (
    "Ilse Marwick",
    "Dorian Pell",
    "Anneke Straub",
    "Tobias Renn",
    "Mirela Castow",
    "Jory Vantongeren",
    "Petra Ojala",
    "Selwyn Harg",
)
KINDS = ("founder", "year", "count")


@dataclass(frozen=True)
class Passage:
    """A passage, a question that it answers, and the answer."""

    text: str
    question: str
    answer: str

    @property
    def prompt(self) -> str:
        """As a retrieval chain asks it."""
        return f"Use the passage to answer the question.\n\nPassage: {self.text}\n\nQuestion: {self.question}"


def passages(count: int, seed: int = 0) -> list[Passage]:
    """So many, the kinds of question in turn."""
    rng = random.Random(seed)
    made: list[Passage] = []
    for index in range(count):
        place, thing, founder, keeper = PLACES[index % 8], THINGS[(index * 3 + index // 8) % 8], *rng.sample(PEOPLE, 2)
        year, visitors = rng.randint(1702, 1958), rng.randint(12, 98) * 100
        text = (
            f"The {thing} of {place} was founded by {founder} in {year}. It has stood empty twice since "
            f"then. Today {keeper} keeps it, and {visitors} people visit it every year."
        )
        asked = {
            "founder": (f"Who founded the {thing} of {place}?", founder),
            "year": (f"In which year was the {thing} of {place} founded?", str(year)),
            "count": (f"How many people visit the {thing} of {place} every year?", str(visitors)),
        }[KINDS[index % len(KINDS)]]
        made.append(Passage(text, *asked))
    return made
