"""Documents that are nothing but copying: sequences that come again, pairs that are recalled, values that are looked up.

Answering from a passage and filling in a tool call both need a network that finds where it has seen a token and goes on as it
went on there (induction; Olsson et al. 2022, arXiv 2209.11895). Ordinary text shows that rarely; here every second token does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from recipes.atlas.document import Document
from recipes.atlas.fiction import make_value

VALUES = ("name", "name", "name", "person", "number", "year", "product", "colour")
SEPARATORS = (" ", ", ", "\n", "; ", " - ")
LINKS = (" is ", ": ", " = ", " has ", ' "', " of ")
Item = Callable[[], str]


def some_item(rng: random.Random, words: Sequence[str]) -> str:
    """A word of the vocabulary, a made-up name, or a number."""
    return rng.choice(words) if rng.random() < 0.5 else make_value(rng.choice(VALUES), rng)


def repeated(rng: random.Random, words: Sequence[str]) -> Document:
    """Three to fourteen items, said two to three times in the same order; the first time cannot be known."""
    items = [some_item(rng, words) for _ in range(rng.randint(3, 14))]
    separator = rng.choice(SEPARATORS)
    once = separator.join(items)
    text = separator.join([once] * rng.choice((2, 2, 3)))
    return Document(text, unknown=[(0, len(once))])


def recalled(rng: random.Random, words: Sequence[str]) -> Document:
    """Two to eight pairs, told from either half to the other, then asked by their keys in another order, twice."""
    keys = list(dict.fromkeys(some_item(rng, words) for _ in range(rng.randint(2, 8))))
    pairs = [(key, some_item(rng, words)) for key in keys]
    separator, link = rng.choice(("\n", ". ", "; ")), rng.choice(LINKS)
    is_turned = rng.random() < 0.3
    told = separator.join(f"{value}{link}{key}" if is_turned else f"{key}{link}{value}" for key, value in pairs)
    document = Document(told, unknown=[(0, len(told))])
    for _ in range(2):
        for key, value in rng.sample(pairs, len(pairs)):
            document = document.then(f"{separator}{key}{link}", known=False).then(value, known=True)
    return document


TOLD = ("the {a} of {k} is {v}", "{k}'s {a} is {v}", "{v} is the {a} of {k}", "{k} has the {a} {v}", "{k} {a} {v}")
ASKED = ("the {a} of {k} is ", "{a} of {k}: ", "{k}'s {a} is ", "{k} {a} ", "what is the {a} of {k}? ")


def looked_up(rng: random.Random, words: Sequence[str]) -> Document:
    """One to three keys, each with two to four of the same attributes; what is asked needs both, as a passage does."""
    keys = list(dict.fromkeys(some_item(rng, words) for _ in range(rng.randint(1, 3))))
    attributes = list(dict.fromkeys(rng.choice(words) for _ in range(rng.randint(2, 4))))
    facts = [(key, attribute, some_item(rng, words)) for key in keys for attribute in attributes]
    rng.shuffle(facts)
    facts = facts[:8]
    separator, told, asked = rng.choice(("\n", ". ")), rng.sample(TOLD, 2), rng.sample(ASKED, 2)

    def filled(template: str, key: str, attribute: str, value: str = "") -> str:
        return template.replace("{a}", attribute).replace("{k}", key).replace("{v}", value)

    text = separator.join(filled(rng.choice(told), *fact) for fact in facts)
    document = Document(text, unknown=[(0, len(text))])
    for key, attribute, value in rng.sample(facts, len(facts)):
        question = separator + filled(rng.choice(asked), key, attribute)
        document = document.then(question, known=False).then(value, known=True)
    return document


def make_copying(rng: random.Random, words: Sequence[str]) -> Document:
    """One document of the three kinds."""
    (make,) = rng.choices((repeated, recalled, looked_up), (0.2, 0.25, 0.55))
    return make(rng, words)
