"""Two settings on the same questions: what one gained and lost against the other, and how much of a gap is closed.

Answers to the same questions are not independent, so two intervals that overlap say little about a difference; the questions that
only one of them has right do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from eft_engine.evaluation.results import WeightResult

CERTAIN = 0.05
"""Above this p a difference may be chance."""


@dataclass(frozen=True)
class Paired:
    """Questions that only the one, and only the other, has right.

    >>> told = Paired(gained=2, lost=15, total=116)
    >>> str(told), round(told.p, 4)
    ('+2 -15 (p 0.0023)', 0.0023)
    """

    gained: int
    lost: int
    total: int

    @property
    def p(self) -> float:
        """Two-sided p of McNemar's exact test: how probable so uneven a split is where none of them is better.

        >>> Paired(gained=0, lost=8, total=58).p, Paired(gained=3, lost=3, total=10).p
        (0.0078125, 1.0)
        """
        differ = self.gained + self.lost
        tail = sum(math.comb(differ, few) for few in range(min(self.gained, self.lost) + 1))
        return min(1.0, 2 * tail / (1 << differ))

    def __str__(self) -> str:
        return f"+{self.gained} -{self.lost} (p {self.p:.2g})"

    def as_json(self) -> dict[str, float | int]:
        """For reports."""
        return {"gained": self.gained, "lost": self.lost, "n": self.total, "p": float(f"{self.p:.3g}")}


def paired(one: WeightResult, against: WeightResult, marks: Sequence[Sequence[bool]]) -> Paired:
    """Compare marks (of the one, of the other) on the questions that both have answered."""
    own, other = (dict(zip(result.places, marks[index], strict=True)) for index, result in enumerate((one, against)))
    both = [(own[place], other[place]) for place in own if place in other]
    gained = sum(mark and not before for mark, before in both)
    return Paired(gained, sum(before and not mark for mark, before in both), len(both))


def against(result: WeightResult, base: WeightResult, scorer: str) -> Paired:
    """What a setting gained and lost in a scorer."""
    return paired(result, base, (result.marks[scorer], base.marks[scorer]))


def gap_closed(
    result: WeightResult, base: WeightResult | None, members: Sequence[WeightResult], scorer: str
) -> float | None:
    """How far a setting is on the way from the worse one of base and tuned small model to the better one: 1 is as good.

    Of content, which the base has, it is `(x - tuned) / (base - tuned)`: what is kept. Of form, which the tuned model has, it is
    `(x - base) / (tuned - base)`: what is taken over. Shares are those of questions that all three have answered, and of several
    tuned models the best one's.

    None: base or tuned model was not asked, it is one of them, or there is no gap beyond chance (McNemar's p above 0.05).
    """
    tuned = [own for own in members if own.member is not None and own.member.endswith(".tuned")]
    if base is None or not tuned or result is base or result.member is not None:
        return None
    best = max(tuned, key=lambda own: own.share(scorer).value)
    if against(base, best, scorer).p > CERTAIN:
        return None
    marks = [dict(zip(own.places, own.marks[scorer], strict=True)) for own in (result, base, best)]
    places = [place for place in marks[0] if all(place in own for own in marks)]
    x, of_base, of_tuned = (sum(own[place] for place in places) for own in marks)
    low, high = sorted((of_base, of_tuned))
    return (x - low) / (high - low) if high > low else None
