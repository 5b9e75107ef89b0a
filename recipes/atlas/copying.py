"""Documents that are nothing but copying: sequences that come again, and pairs that are recalled by their first half.

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
    """Two to eight pairs, then the same pairs in another order; the halves after the links can be known."""
    num_pairs = rng.randint(2, 8)
    keys = list(dict.fromkeys(some_item(rng, words) for _ in range(num_pairs)))
    pairs = [(key, some_item(rng, words)) for key in keys]
    separator, link = rng.choice(("\n", ". ", "; ")), rng.choice(LINKS)
    told = separator.join(f"{key}{link}{value}" for key, value in pairs)
    document = Document(told, unknown=[(0, len(told))])
    for _ in range(2):
        for key, value in rng.sample(pairs, len(pairs)):
            document = document.then(f"{separator}{key}", known=False).then(f"{link}{value}", known=True)
    return document


def make_copying(rng: random.Random, words: Sequence[str]) -> Document:
    """One document of either kind."""
    return repeated(rng, words) if rng.random() < 0.5 else recalled(rng, words)
