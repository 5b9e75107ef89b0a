"""A backend without a model, for testing applications (docs/testing.md): it answers what it is told to, or what fits."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from eft_engine import EngineStats
from eft_engine.errors import EFTError
from eft_engine.weights import Weight, is_schedule, weights_as_json
from eft_integrations.backends import wording
from eft_integrations.backends.automatic import Automatic
from eft_integrations.backends.protocol import last_result
from eft_integrations.backends.replies import AUTO, Answer, Auto, Broken, Gate, Gated, Plan, Reply, planned
from eft_integrations.chat.messages import Message
from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.chat.steering import pairs_of, weights_over
from eft_integrations.json_types import Json, JsonObject
from eft_integrations.pieces import Pieces

__all__ = ["AUTO", "Broken", "Gate", "Gated", "Recorded", "ScriptOverError", "ScriptedBackend"]


class ScriptOverError(EFTError):
    """A scripted backend was asked more often than it has replies: it had `num_replies`, `number` is the request, from 1 on."""

    def __init__(self, message: str, *, num_replies: int, number: int) -> None:
        super().__init__(message)
        self.num_replies = num_replies
        self.number = number


@dataclass
class Recorded:
    """One request and what became of it. `weights` are those in effect; `answer` is there once it is whole, `error` where one was
    raised; `was_left`: the caller closed, dropped or cancelled it before its end.
    """

    request: ChatRequest
    weights: Mapping[str, Weight]
    answer: ChatResult | None = None
    error: BaseException | None = None
    was_left: bool = False

    @property
    def text(self) -> str:
        """The text that was answered from: of the last message, or the prompt."""
        return last_text(self.request)


def last_text(request: ChatRequest) -> str:
    """What patterns look at: the text of the last message, or the prompt."""
    if request.prompt is not None:
        return request.prompt
    return request.messages[-1].content if request.messages else ""


class ScriptedBackend:
    """Answers without a model, and remembers what it was asked. May be used from any thread and event loop.

    Without replies every request is answered with what fits it (`AUTO`): a schema with the simplest value of it, tools with one
    call of each and, when their results are there, with a text that tells these, anything else with a short text. Such answers
    obey `tool_choice`, `stop`, `max_tokens` (a word is a token; an answer that is cut ends with `length`) and `reasoning`. Replies
    that are given stand as they are.

    Args:
        replies: for every request to come a text, a mapping (JSON), an assistant `Message` with a thought or tool calls, a whole
            `ChatResult` (as a model leaves it that `max_tokens` cuts off: pieces of those `invalid_tool_calls` that have an id, a
            name and arguments are streamed like those of whole calls; its metadata need not hold weights), an error to raise,
            `Broken` or `Gated` (an error or a gate in the middle), a function of the request, or `AUTO`. Or one function for all.
        when: replies by pattern, for requests whose last message it is found in (`re.search`); the first that is found goes before
            `replies`, and is not used up.
        otherwise: what answers when `replies` are over; None: a `ScriptOverError`, or, where none were given, `AUTO`.
        call_tools: names of the tools that `AUTO` calls where the model may choose.
        arguments: by tool, arguments of calls of `AUTO` that go before those that are made up.
        text: the final text of `AUTO`.
        thought: what `AUTO` thinks before it answers, unless a request has `reasoning="off"`.
        seed: of made-up values; another one gives others.
        model_name: see `ChatBackend`.
        weights: see `ChatBackend`.
        takes_any_pair: requests may also name pairs that `weights` does not have.
        context_len: see `ChatBackend`.
    """

    def __init__(
        self,
        replies: Sequence[Reply] | Callable[[ChatRequest], Reply | None] | None = None,
        *,
        when: Mapping[str | re.Pattern[str], Reply] | None = None,
        otherwise: Reply | None = None,
        call_tools: Collection[str] | Literal["all"] = "all",
        arguments: Mapping[str, Mapping[str, Json]] | None = None,
        text: str | None = None,
        thought: str = "",
        seed: int = 0,
        model_name: str = "scripted",
        weights: Mapping[str, Weight] | None = None,
        takes_any_pair: bool = False,
        context_len: int = 4096,
    ) -> None:
        self.identity = uuid.uuid4().hex
        self.model_name = model_name
        self.weights: dict[str, Weight] = dict(weights or {"scripted": 1.0})
        self.context_len = context_len
        if isinstance(replies, str):
            raise TypeError(f"replies are a list of replies or a function; for one text write [{replies!r}]")
        self._otherwise: Reply | None = AUTO if replies is None and otherwise is None else otherwise
        self._replies: tuple[Reply, ...] = ()
        if callable(replies):
            self._otherwise = replies
        else:
            self._replies = tuple(replies or ())
        self._when = [(re.compile(pattern), reply) for pattern, reply in (when or {}).items()]
        self._automatic = Automatic(call_tools, dict(arguments or {}), text, thought, seed)
        self._takes_any_pair = takes_any_pair
        self._lock = threading.Lock()
        self._records: list[Recorded] = []
        self._num_used = 0

    # ---- what it was asked -----------------------------------------------------------------------------------------------

    @property
    def requests(self) -> list[ChatRequest]:
        """All requests so far, in the order in which they came."""
        return [record.request for record in self.records]

    @property
    def records(self) -> list[Recorded]:
        """All requests so far, with their weights and answers."""
        with self._lock:
            return list(self._records)

    def weights_of(self, pattern: str) -> list[Mapping[str, Weight]]:
        """The weights in effect of all requests that speak of something: a pattern that is found in one of their messages."""
        return [record.weights for record in self.records if re.search(pattern, _all_text(record.request))]

    def reset(self) -> None:
        """Forget all requests, and begin the script anew."""
        with self._lock:
            self._records = []
            self._num_used = 0

    # ---- what adapters ask -----------------------------------------------------------------------------------------------

    def token_ids(self, text: str) -> list[int]:
        """One token per word."""
        return list(range(wording.count(text)))

    def count_prompt_tokens(self, request: ChatRequest) -> int:
        """Words of all messages, or of the text."""
        return wording.prompt_tokens(request)

    def stats(self) -> EngineStats:
        """Requests by what became of them; no networks."""
        records = self.records
        answers = [record.answer for record in records if record.answer is not None]
        num_failed = sum(record.error is not None for record in records)
        num_left = sum(record.was_left for record in records)
        return EngineStats(
            num_running=len(records) - len(answers) - num_failed - num_left,
            num_waiting=0,
            num_warm_prefixes=0,
            num_finished=len(answers),
            num_failed=num_failed,
            num_cancelled=num_left,
            prompt_tokens=sum(self.count_prompt_tokens(record.request) for record in records),
            cached_prompt_tokens=0,
            completion_tokens=sum(answer.usage.completion_tokens for answer in answers),
            num_drafted=0,
            num_accepted=0,
            num_steps=0,
            networks=(),
        )

    def chat(self, request: ChatRequest) -> ChatResult:
        """The next answer.

        Raises:
            ScriptOverError: there is none left.
            UnknownPairError, InvalidWeightError: as for an engine.
            Exception: what the reply says.
        """
        return last_result([delta.result for delta in self.stream(request)])

    def stream(self, request: ChatRequest) -> Generator[ChatDelta]:
        """The next answer, word by word; its calls in two pieces each. It is chosen now, not when the first piece is asked for."""
        turn = self._begin(request)
        return Pieces(turn.pieces(), turn.leave)

    async def achat(self, request: ChatRequest) -> ChatResult:
        """See `chat`."""
        return last_result([delta.result async for delta in self.astream(request)])

    async def astream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        """See `stream`."""
        turn = self._begin(request)
        try:
            async for delta in turn.apieces():
                yield delta
        finally:
            turn.leave()

    # ---- which reply -----------------------------------------------------------------------------------------------------

    def _begin(self, request: ChatRequest) -> _Turn:
        record = Recorded(request, self._weights_in_effect(request))
        found = next((reply for pattern, reply in self._when if pattern.search(last_text(request))), None)
        with self._lock:
            self._records.append(record)
            number = len(self._records)
            if found is None and self._num_used < len(self._replies):
                found = self._replies[self._num_used]
                self._num_used += 1
        try:
            reply = self._otherwise if found is None else found
            if reply is None:
                raise self._over(number)
            plan = planned(reply, request)
            return _Turn(record, plan, self._result(plan.answer, record, number))
        except BaseException as error:
            record.error = error
            raise

    def _weights_in_effect(self, request: ChatRequest) -> dict[str, Weight]:
        own = self.weights
        if (
            self._takes_any_pair
            and isinstance(request.reward_weights, Mapping)
            and not is_schedule(request.reward_weights)
        ):
            own = {**dict.fromkeys(request.reward_weights, 1.0), **own}
        found = weights_over(request.reward_weights, own, pairs_of(request), owner="this script")
        for given in (request.call_weight, request.reasoning_weight):
            weights_over(given, own, pairs_of(request), over=found, owner="this script")
        return found

    def _over(self, number: int) -> ScriptOverError:
        return ScriptOverError(
            f"the script has {len(self._replies)} replies, and this is request {number}; give more, or otherwise=AUTO to answer "
            "what comes after them by itself, or when={pattern: reply}; records say what was asked so far",
            num_replies=len(self._replies),
            number=number,
        )

    def _result(self, answer: Answer | Auto, record: Recorded, number: int) -> ChatResult:
        metadata: JsonObject = {"reward_weights": weights_as_json(record.weights)}
        match answer:
            case ChatResult():
                return dataclasses.replace(answer, metadata={**metadata, **answer.metadata})
            case Auto():
                metadata |= self._automatic.report(record.request)
                return wording.within_limits(self._automatic.answer(record.request, number), record.request, metadata)
            case Mapping():
                answer = json.dumps(dict(answer), ensure_ascii=False)
        message = Message("assistant", answer) if isinstance(answer, str) else answer
        return wording.whole(message, record.request, metadata)


class _Turn:
    """One request that is being answered."""

    def __init__(self, record: Recorded, plan: Plan, result: ChatResult) -> None:
        self._record = record
        self._plan = plan
        self._result = result
        self._left = threading.Event()

    def pieces(self) -> Generator[ChatDelta]:
        for index, delta in enumerate(wording.pieces(self._result)):
            if self._waits_at(index, delta) and self._plan.gate is not None:
                self._plan.gate.pass_through(self._left)
            if self._record.was_left:
                return
            yield self._passed(index, delta)

    async def apieces(self) -> AsyncIterator[ChatDelta]:
        for index, delta in enumerate(wording.pieces(self._result)):
            if self._waits_at(index, delta) and self._plan.gate is not None:
                await self._plan.gate.apass_through()
            yield self._passed(index, delta)
            await asyncio.sleep(0)

    def _waits_at(self, index: int, delta: ChatDelta) -> bool:
        return _is_at(self._plan.waits_after, index, delta)

    def _passed(self, index: int, delta: ChatDelta) -> ChatDelta:
        """The piece, unless the error comes first."""
        if self._plan.error is not None and _is_at(self._plan.breaks_after, index, delta):
            self._record.error = self._plan.error
            raise self._plan.error
        if delta.result is not None:
            self._record.answer = delta.result
        return delta

    def leave(self) -> None:
        """The caller reads no further."""
        if self._record.answer is None and self._record.error is None:
            self._record.was_left = True
        self._left.set()


def _is_at(after: int, index: int, delta: ChatDelta) -> bool:
    """Whether something that comes behind so many pieces comes in front of this one, at the latest in front of the whole."""
    return index == after or (delta.result is not None and after > index)


def _all_text(request: ChatRequest) -> str:
    return request.prompt or "\n".join(message.content for message in request.messages)
