"""Texts that are the same, or nearly: by the sets of their three-word runs.

Two texts are near when their sets overlap by at least `NEAR` (Jaccard similarity, Broder 1997). Candidates come from an index of
each text's rarest runs alone, which misses none (prefix filter; Chaudhuri et al. 2006), so files of 100 000 rows take seconds.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

NEAR = 0.8
"""Overlap from which two texts count as near duplicates."""

RUN = 3
"""Words of a run."""

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+|[-+*/=<>%^$€£#&@|~\\]")
"""A word, or a sign that makes another question (3 + 4, 3 - 4); languages without spaces by the letter."""

COMMON_SHARE, COMMON_LEAST = 0.1, 10
"""Runs in more than this share of the texts, and in more than so many, are an instruction that all share: they say nothing."""


def normalised_words(text: str) -> tuple[str, ...]:
    """Words in lower case, without punctuation.

    >>> normalised_words("What's  the Capital?")
    ('what', 's', 'the', 'capital')
    """
    return tuple(WORD.findall(text.casefold()))


def key_of(text: str) -> str:
    """The same for texts that differ in case, spaces and punctuation alone; a text without words keeps what it has.

    >>> key_of("Is it 3 + 4?") == key_of("is it 3+4"), key_of("3 + 4") == key_of("3 - 4"), key_of("?!")
    (True, False, '?!')
    """
    return " ".join(normalised_words(text)) or text.strip()


def runs(text: str) -> frozenset[tuple[str, ...]]:
    """All runs of three words; a shorter text is one run."""
    words = normalised_words(text)
    return (
        frozenset(words[start : start + RUN] for start in range(max(1, len(words) - RUN + 1))) if words else frozenset()
    )


def overlap(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    """Shared runs among all runs of both; 0 of nothing."""
    together = len(one | other)
    return len(one & other) / together if together else 0.0


def near_pairs(texts: Sequence[str], others: Sequence[str] | None = None) -> Iterator[tuple[int, int]]:
    """Pairs of near texts as indices: inside `texts` (the earlier first), or one of `texts` with one of `others`.

    >>> list(near_pairs(["a b c d e f g h", "x y z", "A b c d e f g, h!"]))
    [(0, 2)]
    >>> list(near_pairs(["a b c"], ["x y z", "a b c"]))
    [(0, 1)]
    """
    left = [runs(text) for text in texts]
    right = left if others is None else [runs(text) for text in others]
    together = left if others is None else [*left, *right]
    counts = Counter(run for own in together for run in own)
    most = max(COMMON_LEAST, COMMON_SHARE * len(together))
    common = frozenset(run for run, count in counts.items() if count > most)
    left, right = ([own - common or own for own in side] for side in (left, right))
    index: dict[tuple[str, ...], list[int]] = defaultdict(list)
    if others is not None:
        for place, own in enumerate(left):
            for run in _rarest(own, counts):
                index[run].append(place)
    for place, own in enumerate(right):
        rarest = _rarest(own, counts)
        candidates = sorted({candidate for run in rarest for candidate in index.get(run, ())})
        for candidate in candidates:
            shortest, longest = sorted((len(own), len(left[candidate])))
            if shortest >= NEAR * longest and overlap(own, left[candidate]) >= NEAR:
                yield candidate, place
        if others is None:
            for run in rarest:
                index[run].append(place)


def _rarest(own: frozenset[tuple[str, ...]], counts: Counter[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """So many of the rarest runs that every near text shares one of them."""
    kept = len(own) - math.ceil(NEAR * len(own)) + 1 if own else 0
    return sorted(own, key=lambda run: (counts[run], run))[:kept]


def groups(size: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Indices 0..size-1 in groups that pairs connect, in the order of their first ones.

    >>> groups(4, [(0, 2)])
    [[0, 2], [1], [3]]
    """
    parent = list(range(size))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    members: dict[int, list[int]] = defaultdict(list)
    for index in range(size):
        members[root(index)].append(index)
    return list(members.values())
