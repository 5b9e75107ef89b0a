"""How long a refused client should wait."""

from __future__ import annotations

import math


class Pace:
    """How long requests take of late, to tell a refused client when to come back.

    >>> pace = Pace(max_num_seqs=2)
    >>> pace.note(3.0)
    >>> pace.retry_after_s(num_queued=4)
    6
    """

    def __init__(self, *, max_num_seqs: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._mean_s = 1.0
        self._num_noted = 0

    def note(self, total_s: float) -> None:
        """A request took so long; later ones count more."""
        self._num_noted += 1
        self._mean_s += (total_s - self._mean_s) * max(0.1, 1 / self._num_noted)

    def retry_after_s(self, num_queued: int) -> int:
        """Seconds until what waits now will probably have been answered; from 1 to 60."""
        return min(60, max(1, math.ceil(self._mean_s * num_queued / self._max_num_seqs)))
