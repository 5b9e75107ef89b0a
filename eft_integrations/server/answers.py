"""How a body's sampling fields become requests, and what every reply carries: the `eft` block."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.json_types import JsonObject
from eft_integrations.sampling import SamplingFields, given_sampling
from eft_integrations.server.admission import Room, Turns
from eft_integrations.server.callers import Caller
from eft_integrations.server.compositions import Chosen, Composition
from eft_integrations.server.streaming import interleave
from eft_integrations.wire.openai import invalid_call_form


class Observer(Protocol):
    """Is told about every answer."""

    def observe(self, composition: Composition, result: ChatResult) -> None:
        """An answer is whole."""


@dataclass(frozen=True)
class Asking:
    """Who asks what of which composition, before the requests are made."""

    chosen: Chosen
    caller: Caller
    turns: Turns
    observer: Observer
    request_id: str

    def answering(self, requests: Sequence[ChatRequest], ignored: Sequence[str]) -> Answering:
        """The answers to these requests."""
        return Answering(self, tuple(requests), ignored)


@dataclass(frozen=True)
class Answering:
    """Answers to one body: requests to one composition, and what the replies say besides the answers."""

    asking: Asking
    requests: tuple[ChatRequest, ...]
    ignored: Sequence[str]

    @property
    def chosen(self) -> Chosen:
        """The composition and its weights."""
        return self.asking.chosen

    async def deltas(self) -> AsyncGenerator[tuple[int, ChatDelta]]:
        """Pieces of all answers as they come, each with the number of its answer."""
        composition = self.chosen.composition
        with self.asking.turns.room(self.asking.caller, len(self.requests)) as room:
            async with aclosing(interleave([self._answer(request, room) for request in self.requests])) as pieces:
                async for index, delta in pieces:
                    if delta.result is not None:
                        self.asking.observer.observe(composition, delta.result)
                    yield index, delta

    async def _answer(self, request: ChatRequest, room: Room) -> AsyncGenerator[ChatDelta]:
        """One answer, when it is its turn."""
        composition = self.chosen.composition
        async with room.place():
            stream = composition.backend.astream(composition.ask(request))
            async with aclosing(stream):  # type: ignore[type-var]
                async for delta in stream:
                    yield delta

    async def results(self) -> list[ChatResult]:
        """All answers, whole."""
        found: dict[int, ChatResult] = {}
        async with aclosing(self.deltas()) as pieces:
            async for index, delta in pieces:
                if delta.result is not None:
                    found[index] = delta.result
        return [found[index] for index in range(len(self.requests))]

    def eft(self, results: Sequence[ChatResult]) -> JsonObject:
        """The `eft` block: weights in effect, ignored fields, and per answer what it cost."""
        reports = [self.chosen.composition.report(result) for result in results]
        block: JsonObject = {"reward_weights": reports[0].pop("reward_weights"), "choices": reports}
        for report, result in zip(reports, results, strict=True):
            report.pop("reward_weights", None)
            if result.invalid_tool_calls:
                report["invalid_tool_calls"] = [invalid_call_form(call) for call in result.invalid_tool_calls]
        if self.ignored:
            block["ignored"] = list(self.ignored)
        return block


def repeated(request: ChatRequest, n: int) -> list[ChatRequest]:
    """`n` requests that differ in their seeds, if there is one."""
    seed = request.sampling.get("seed")
    if not isinstance(seed, int):
        return [request] * n
    return [dataclasses.replace(request, sampling={**request.sampling, "seed": seed + index}) for index in range(n)]


def sampling_of(body: SamplingFields, *, default_max_tokens: int) -> dict[str, object]:
    """Fields of `SamplingParams` that the body sets."""
    return {"max_tokens": default_max_tokens, **given_sampling(body)}


def new_id(prefix: str) -> str:
    """An id of a reply or of a part of it."""
    return f"{prefix}{uuid.uuid4().hex[:24]}"
