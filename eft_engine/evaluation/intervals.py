"""Confidence intervals of shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """`hits` of `total`, with Wilson's 95 % interval, which stays inside 0..1 and is sensible at 0 and at all."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """Hits / total; 0 of nothing is 0."""
        return self.hits / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper bound.

        >>> low, high = Share(8, 10).interval
        >>> round(low, 3), round(high, 3)
        (0.49, 0.943)
        >>> Share(0, 0).interval
        (0.0, 1.0)
        """
        if not self.total:
            return 0.0, 1.0
        n, z2 = self.total, Z_95**2
        middle = (self.value + z2 / (2 * n)) / (1 + z2 / n)
        half = Z_95 / (1 + z2 / n) * math.sqrt(self.value * (1 - self.value) / n + z2 / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} [{low:.1%}, {high:.1%}]"

    def as_json(self) -> dict[str, float | int]:
        """For reports."""
        low, high = self.interval
        return {"share": round(self.value, 4), "low": round(low, 4), "high": round(high, 4), "n": self.total}


def share_of(marks: Sequence[bool]) -> Share:
    """How many are true."""
    return Share(sum(marks), len(marks))
