"""A backend without a model, for testing chains and applications: it answers what it was told to."""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

from eft_engine import EngineStats, Usage
from eft_engine.config import resolve_weights
from eft_integrations.chat.messages import InvalidToolCall, Message, ToolCall
from eft_integrations.chat.request import CallDelta, ChatDelta, ChatRequest, ChatResult


class ScriptedBackend:
    """Answers with what it was given, in order, and remembers what it was asked: for testing chains without a model.

    Args:
        replies: for every request to come a text, an assistant `Message` with a thought or tool calls, or a whole `ChatResult`,
            as a model leaves it that `max_tokens` cuts off: pieces of those `invalid_tool_calls` that have an id, a name and
            arguments are streamed like those of whole calls. Its metadata need not hold weights.
        model_name: see `ChatBackend`.
        weights: see `ChatBackend`.
        context_len: see `ChatBackend`.
    """

    def __init__(
        self,
        replies: Sequence[str | Message | ChatResult],
        *,
        model_name: str = "scripted",
        weights: Mapping[str, float] | None = None,
        context_len: int = 4096,
    ) -> None:
        self.identity = uuid.uuid4().hex
        self.requests: list[ChatRequest] = []
        self._replies: list[str | Message | ChatResult] = list(replies)
        self._lock = threading.Lock()
        self.model_name = model_name
        self.weights = dict(weights or {"scripted": 1.0})
        self.context_len = context_len

    def token_ids(self, text: str) -> list[int]:
        """One token per word."""
        return list(range(len(text.split())))

    def stats(self) -> EngineStats:
        """One finished request per reply that was given; no networks."""
        return EngineStats(
            num_running=0,
            num_waiting=0,
            num_warm_prefixes=0,
            num_finished=len(self.requests),
            num_failed=0,
            num_cancelled=0,
            prompt_tokens=sum(self.count_prompt_tokens(request) for request in self.requests),
            cached_prompt_tokens=0,
            completion_tokens=sum(self._completion_tokens(reply) for reply in self._replies[: len(self.requests)]),
            num_drafted=0,
            num_accepted=0,
            num_steps=0,
            networks=(),
        )

    def count_prompt_tokens(self, request: ChatRequest) -> int:
        """Words of all messages, or of the text."""
        if request.prompt is not None:
            return len(self.token_ids(request.prompt))
        return sum(len(self.token_ids(message.content)) for message in request.messages)

    def chat(self, request: ChatRequest) -> ChatResult:
        """The next reply.

        Raises:
            IndexError: there is none left.
            UnknownPairError, InvalidWeightError: as for an engine.
        """
        weights = resolve_weights(request.reward_weights, self.weights, owner="this script")
        with self._lock:
            if len(self.requests) == len(self._replies):
                raise IndexError(
                    f"the script has {len(self._replies)} replies; this is request {len(self.requests) + 1}"
                )
            reply = self._replies[len(self.requests)]
            self.requests.append(request)
        if isinstance(reply, ChatResult):
            return dataclasses.replace(reply, metadata={"reward_weights": weights, **reply.metadata})
        message = Message("assistant", reply) if isinstance(reply, str) else reply
        return ChatResult(
            content=message.content,
            tool_calls=message.tool_calls,
            invalid_tool_calls=(),
            finish_reason="tool_calls" if message.tool_calls else "stop",
            usage=Usage(
                self.count_prompt_tokens(request),
                self._completion_tokens(message),
                reasoning_tokens=len(self.token_ids(message.reasoning)),
            ),
            logprobs=None,
            metadata={"reward_weights": weights},
            reasoning=message.reasoning,
        )

    def _completion_tokens(self, reply: str | Message | ChatResult) -> int:
        match reply:
            case str():
                return len(self.token_ids(reply))
            case Message():
                return len(self.token_ids(f"{reply.reasoning} {reply.content}")) + len(reply.tool_calls)
            case ChatResult():
                return reply.usage.completion_tokens

    def stream(self, request: ChatRequest) -> Iterator[ChatDelta]:
        """The next reply, word by word; its calls in two pieces each."""
        result = self.chat(request)
        for word in _words(result.reasoning):
            yield ChatDelta(reasoning=word)
        for word in _words(result.content):
            yield ChatDelta(text=word)
        for index, call in enumerate((*result.tool_calls, *_begun(result.invalid_tool_calls))):
            yield ChatDelta(call=CallDelta(index, call.call_id, call.name))
            yield ChatDelta(call=CallDelta(index, arguments=call.arguments))
        yield ChatDelta(result=result)

    async def achat(self, request: ChatRequest) -> ChatResult:
        """See `chat`."""
        return self.chat(request)

    async def astream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        """See `stream`."""
        for delta in self.stream(request):
            yield delta


def _words(text: str) -> list[str]:
    first, *rest = text.split(" ")
    return [*([first] if first else []), *(f" {word}" for word in rest)]


def _begun(broken: Sequence[InvalidToolCall]) -> list[ToolCall]:
    """Calls of which a stream has sent pieces before they turned out to be none."""
    return [
        ToolCall(call.call_id, call.name, call.arguments)
        for call in broken
        if call.call_id is not None and call.name is not None and call.arguments is not None
    ]
