"""Clocks of one request, and totals of an engine."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from eft_engine.models.network import Network
from eft_engine.outputs import RequestMetrics, Usage

Outcome = Literal["finished", "failed", "cancelled"]


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
        self,
        num_forwards: Mapping[str, int],
        *,
        num_drafted: int,
        num_accepted: int,
        num_steps: int,
        num_redrawn: int = 0,
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
            num_redrawn=num_redrawn,
        )


@dataclass
class ForwardTotals:
    """Forward passes of one network."""

    num_forwards: int = 0
    num_tokens: int = 0
    host_s: float = 0.0


class EngineTotals:
    """Counts what an engine has done. Written by the engine's thread, read by any."""

    def __init__(self) -> None:
        self.requests: Counter[Outcome] = Counter()
        self.tokens: Counter[str] = Counter()
        """By `prompt`, `cached_prompt`, `completion`, `drafted`, `accepted`; and evaluations as `steps`."""
        self.forwards: dict[Network, ForwardTotals] = defaultdict(ForwardTotals)
        self.last_pass = 0.0
        """When the last pass ended, by `time.monotonic`."""

    def count_forward(self, network: Network, num_tokens: int, seconds: float) -> None:
        """A forward pass over `num_tokens` tokens, padding included."""
        totals = self.forwards[network]
        totals.num_forwards += 1
        totals.num_tokens += num_tokens
        totals.host_s += seconds
        self.last_pass = time.monotonic()

    @property
    def forward_s(self) -> float:
        """Seconds of the host in forward passes of all networks."""
        return sum(totals.host_s for totals in self.forwards.values())

    def count_request(
        self, outcome: Outcome, usage: Usage, *, num_drafted: int, num_accepted: int, num_steps: int
    ) -> None:
        """A request is over."""
        self.requests[outcome] += 1
        self.tokens.update(
            prompt=usage.prompt_tokens,
            cached_prompt=usage.cached_prompt_tokens,
            completion=usage.completion_tokens,
            drafted=num_drafted,
            accepted=num_accepted,
            steps=num_steps,
        )
