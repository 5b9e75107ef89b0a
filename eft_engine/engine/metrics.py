"""Clocks of one request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from eft_engine.outputs import RequestMetrics


@dataclass
class Clock:
    """Notes when a request was submitted, first worked on, and when its tokens came (seconds of a monotonic clock)."""

    submitted: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    num_tokens: int = 0

    def start(self) -> None:
        """The engine begins to work on the request, or goes on after the request was preempted."""
        self.started = self.started or time.perf_counter()

    def token(self) -> None:
        """A token was committed."""
        self.last_token = time.perf_counter()
        self.first_token = self.first_token or self.last_token
        self.num_tokens += 1

    def metrics(
        self, num_forwards: Mapping[str, int], *, num_drafted: int, num_accepted: int, num_steps: int
    ) -> RequestMetrics:
        """The finished request's metrics."""
        after_first = self.num_tokens - 1
        return RequestMetrics(
            queue_s=self.started - self.submitted,
            ttft_s=self.first_token - self.submitted,
            tpot_s=(self.last_token - self.first_token) / after_first if after_first else 0.0,
            total_s=self.last_token - self.submitted,
            num_forwards=num_forwards,
            num_drafted=num_drafted,
            num_accepted=num_accepted,
            num_steps=num_steps,
        )
