"""What is known of one request while it runs. The parts that serve it tell it; logs, metrics and traces read it when it has ended.

A record holds names and numbers, never a text of a user.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from eft_engine.weights import Weight
from eft_integrations.chat.request import ChatDelta, ChatResult

PROMPT_FIELD = "messages"
"""What most bodies call their prompts."""


@dataclass
class Record:
    """One request over HTTP.

    Attributes:
        began: when it came, by `time.perf_counter`.
        caller: the name of whoever asked; None: nobody that is known.
        model: the composition's name.
        reward_weights: in effect, by pair of the composition. What a schedule says may be a text of the caller's.
        sampling: numbers of the sampling, by field.
        num_answers: how many it asked for.
        results: those that became whole.
        first_s: seconds until the first piece of an answer.
        prompt_field: what the body calls its prompt, as errors name it.
        error: why it failed.
        refusal: code of what was refused without an exception.
        status: of the response, as it was sent.
        is_whole: the response was sent to its end.
        is_stopped: the server stopped before.
    """

    request_id: str = ""
    method: str = ""
    began: float = field(default_factory=time.perf_counter)
    trace_id: str | None = None
    route: str = "other"
    caller: str | None = None
    model: str | None = None
    reward_weights: Mapping[str, Weight] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    num_answers: int = 0
    is_stream: bool = False
    results: list[ChatResult] = field(default_factory=list)
    first_s: float | None = None
    prompt_field: str = PROMPT_FIELD
    error: BaseException | None = None
    refusal: str | None = None
    status: int = 0
    num_bytes: int = 0
    is_whole: bool = False
    is_stopped: bool = False

    @property
    def elapsed_s(self) -> float:
        """Seconds since it came."""
        return time.perf_counter() - self.began

    def asks(
        self, model: str, reward_weights: Mapping[str, Weight], sampling: Mapping[str, Any], num_answers: int
    ) -> None:
        """It has been understood, and is about to be answered."""
        self.model, self.reward_weights = model, reward_weights
        self.sampling = {
            name: value
            for name, value in sampling.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self.num_answers += num_answers

    def piece(self, delta: ChatDelta) -> None:
        """A piece of an answer has come."""
        if self.first_s is None:
            self.first_s = self.elapsed_s
        if delta.result is not None:
            self.results.append(delta.result)

    def fail(self, error: BaseException) -> None:
        """It failed; the first reason counts."""
        if self.error is None:
            self.error = error


CURRENT: ContextVar[Record | None] = ContextVar("eft_record", default=None)


def current() -> Record:
    """The record of the request that is served here; outside of one, a record that nobody reads."""
    return CURRENT.get() or Record()


def told_weights(record: Record) -> dict[str, float | str]:
    """Weights as logs and traces tell them: numbers, and of a schedule its kind, since the rest may be a text of the caller's."""
    return {
        pair: weight if isinstance(weight, int | float) else weight.kind
        for pair, weight in record.reward_weights.items()
    }
