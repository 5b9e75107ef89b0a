"""What the answers of a file have in common, token by token: a fact is in few of them, a form is in most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from eft_tuning.rendering import Rendered, answer_runs

RUN = 3
"""Tokens of a run."""

OUTSIDE = -1
"""Stands for what is before and behind an answer, so that its first and last tokens are in runs too."""

LEAST_ANSWERS = 10
"""In fewer answers nothing counts as shared: three answers have a fact in common easily."""


@dataclass(frozen=True)
class SharedRuns:
    """Runs of three tokens that many answers have."""

    runs: frozenset[tuple[int, ...]] = field(default_factory=frozenset)

    @classmethod
    def of(cls, rows: Sequence[Rendered], *, share: float) -> SharedRuns:
        """Runs that at least this share of the answers has."""
        counts: Counter[tuple[int, ...]] = Counter()
        num_answers = 0
        for row in rows:
            for start, end in answer_runs(row):
                counts.update({run for _, run in _runs(row.token_ids[start:end])})
                num_answers += 1
        if num_answers < LEAST_ANSWERS:
            return cls()
        return cls(frozenset(run for run, count in counts.items() if count >= share * num_answers))

    def places(self, row: Rendered) -> frozenset[int]:
        """Places of a dialogue whose token is in such a run.

        >>> row = Rendered([9, 1, 2, 3, 4], [False, True, True, True, True])
        >>> sorted(SharedRuns(frozenset({(OUTSIDE, 1, 2)})).places(row))
        [1, 2]
        """
        return frozenset(
            place
            for start, end in answer_runs(row)
            for first, run in _runs(row.token_ids[start:end])
            if run in self.runs
            for place in range(max(start, start + first), min(end, start + first + RUN))
        )


def _runs(token_ids: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Each run with the place of its first token, which may be before the answer."""
    outside = [OUTSIDE] * (RUN - 1)
    padded = [*outside, *token_ids, *outside]
    for place in range(len(padded) - RUN + 1):
        yield place - len(outside), tuple(padded[place : place + RUN])
