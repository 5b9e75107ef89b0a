"""How a body's sampling fields become requests, and what every reply carries: the `eft` block."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from eft_engine.outputs import TokenLogprobs
from eft_engine.preparing import prepared
from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.json_types import Json, JsonObject
from eft_integrations.sampling import SamplingFields, given_sampling
from eft_integrations.server.callers.admission import Room, Turns
from eft_integrations.server.callers.callers import Caller
from eft_integrations.server.compositions import Chosen, Composition
from eft_integrations.server.openai.token_rewards import rewards_form
from eft_integrations.server.seen.records import current
from eft_integrations.server.seen.request_ids import answer_id
from eft_integrations.server.streaming import interleave
from eft_integrations.wire.openai import invalid_call_form

AnswerOne: TypeAlias = Callable[[ChatRequest], AsyncIterator[ChatDelta]]
"""Answers one request, whose weights are not settled yet; closing the iterator cancels it."""


class Observer(Protocol):
    """Is told about every answer."""

    def observe(self, composition: Composition, caller: Caller, result: ChatResult) -> None:
        """An answer is whole."""


@dataclass(frozen=True)
class Asking:
    """Who asks what of which composition, before the requests are made."""

    chosen: Chosen
    caller: Caller
    turns: Turns
    observer: Observer
    request_id: str
    unused: Sequence[str] = ()
    """What came around the body and is not used."""

    def answering(self, requests: Sequence[ChatRequest], ignored: Sequence[str]) -> Answering:
        """The answers to these requests."""
        return Answering(self, tuple(requests), [*ignored, *(name for name in self.unused if name not in ignored)])


@dataclass(frozen=True)
class Answering:
    """Answers to one body: requests to one composition, and what the replies say besides the answers.

    `tells_logprobs`, `tells_rewards`: which of the two the reply says of tokens, where the requests ask for log-probabilities.
    `answer_one` stands before the backend; None: nothing does.
    """

    asking: Asking
    requests: tuple[ChatRequest, ...]
    ignored: Sequence[str]
    tells_logprobs: bool = True
    tells_rewards: bool = False
    answer_one: AnswerOne | None = None

    @property
    def chosen(self) -> Chosen:
        """The composition and its weights."""
        return self.asking.chosen

    async def deltas(self) -> AsyncGenerator[tuple[int, ChatDelta]]:
        """Pieces of all answers as they come, each with the number of its answer."""
        composition = self.chosen.composition
        caller = self.asking.caller
        record = current()
        record.asks(
            composition.name,
            composition.weights_of(self.chosen.steering),
            self.requests[0].sampling,
            len(self.requests),
        )
        num_tokens = 0
        if caller.max_tokens_in_flight is not None:
            num_tokens = await prepared(most_tokens, composition, self.requests)
        with self.asking.turns.room(caller, len(self.requests), num_tokens=num_tokens) as room:
            answers = [self._answer(index, request, room) for index, request in enumerate(self.requests)]
            try:
                async with aclosing(interleave(answers)) as pieces:
                    async for index, delta in pieces:
                        record.piece(delta)
                        if delta.result is not None:
                            self.asking.observer.observe(composition, caller, delta.result)
                        yield index, delta
            except Exception as error:
                record.fail(error)
                raise

    async def _answer(self, index: int, request: ChatRequest, room: Room) -> AsyncGenerator[ChatDelta]:
        """One answer, when it is its turn."""
        composition = self.chosen.composition
        own_id = answer_id(self.asking.request_id, index, len(self.requests))
        came = time.perf_counter()
        async with room.place():
            waited_s = time.perf_counter() - came
            own = dataclasses.replace(request, request_id=own_id)
            stream = self.answer_one(own) if self.answer_one else composition.backend.astream(composition.ask(own))
            async with aclosing(stream):  # type: ignore[type-var]
                async for delta in stream:
                    yield (
                        delta
                        if delta.result is None
                        else dataclasses.replace(delta, result=_with_wait(delta.result, waited_s))
                    )

    async def results(self) -> list[ChatResult]:
        """All answers, whole."""
        found: dict[int, ChatResult] = {}
        async with aclosing(self.deltas()) as pieces:
            async for index, delta in pieces:
                if delta.result is not None:
                    found[index] = delta.result
        return [found[index] for index in range(len(self.requests))]

    def eft(self, results: Sequence[ChatResult], *, tokens: bool = False) -> JsonObject:
        """The `eft` block: weights in effect, ignored fields, and per answer what it cost and, if they are wanted, its tokens."""
        reports = [self.chosen.composition.report(result) for result in results]
        block: JsonObject = {
            "request_id": self.asking.request_id,
            "reward_weights": reports[0].pop("reward_weights"),
            "choices": reports,
        }
        for report, result in zip(reports, results, strict=True):
            report.pop("reward_weights", None)
            if tokens:
                report["tokens"] = self.rewards(result.logprobs or ())
            if result.invalid_tool_calls:
                report["invalid_tool_calls"] = [invalid_call_form(call) for call in result.invalid_tool_calls]
        further = [name for report in reports for name in report.get("ignored") or ()]
        if ignored := [*dict.fromkeys([*self.ignored, *further])]:
            block["ignored"] = ignored
        return block

    def rewards(self, tokens: Sequence[TokenLogprobs]) -> list[Json]:
        """What is said of tokens, with the rewards of the composition's own pairs and of the request's."""
        composition = self.chosen.composition
        pairs = [*composition.weights, *self.chosen.steering.prompt_pairs]
        return rewards_form(tokens, pairs, terms=composition.terms)


def _with_wait(result: ChatResult, waited_s: float) -> ChatResult:
    """A result whose times begin when it began to wait for its place; the engine's own begin when it has one."""
    waited = {
        name: result.metadata[name] + waited_s
        for name in ("queue_s", "ttft_s", "total_s")
        if isinstance(result.metadata.get(name), int | float)
    }
    return dataclasses.replace(result, metadata={**result.metadata, **waited})


def most_tokens(composition: Composition, requests: Sequence[ChatRequest]) -> int:
    """Most tokens that answers may hold, prompts included, those of prompt pairs too; a prompt that is asked several times is
    rendered once.
    """
    context_len = composition.backend.context_len
    counted: dict[tuple[object, ...], int] = {}
    sides: dict[tuple[object, ...], int] = {}
    total = 0
    for request in requests:
        key = (id(request.messages), request.prompt, request.prompt_ids)
        if key not in counted:
            counted[key] = composition.count_prompt_tokens(request)
            sides[key] = composition.count_side_tokens(request, counted[key])
        most = request.sampling.get("max_tokens")
        room = max(0, context_len - counted[key])
        total += counted[key] + sides[key] + (min(most, room) if isinstance(most, int) else room)
    return total


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
