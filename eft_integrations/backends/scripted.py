"""A backend without a model, for testing chains and applications: it answers what it was told to."""

from __future__ import annotations

import threading
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

from eft_engine import EngineStats, Usage
from eft_engine.config import resolve_weights
from eft_integrations.chat.messages import Message
from eft_integrations.chat.request import CallDelta, ChatDelta, ChatRequest, ChatResult


class ScriptedBackend:
    """Answers with what it was given, in order, and remembers what it was asked: for testing chains without a model.

    Args:
        replies: a text, or an assistant `Message` with tool calls, for every request to come.
        model_name: see `ChatBackend`.
        weights: see `ChatBackend`.
        context_len: see `ChatBackend`.
    """

    def __init__(
        self,
        replies: Sequence[str | Message],
        *,
        model_name: str = "scripted",
        weights: Mapping[str, float] | None = None,
        context_len: int = 4096,
    ) -> None:
        self.identity = uuid.uuid4().hex
        self.requests: list[ChatRequest] = []
        self._replies = [Message("assistant", reply) if isinstance(reply, str) else reply for reply in replies]
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
            completion_tokens=sum(len(self.token_ids(reply.content)) for reply in self._replies[: len(self.requests)]),
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
        prompt = self.count_prompt_tokens(request)
        return ChatResult(
            content=reply.content,
            tool_calls=reply.tool_calls,
            invalid_tool_calls=(),
            finish_reason="tool_calls" if reply.tool_calls else "stop",
            usage=Usage(prompt, len(self.token_ids(reply.content)) + len(reply.tool_calls)),
            logprobs=None,
            metadata={"reward_weights": weights},
        )

    def stream(self, request: ChatRequest) -> Iterator[ChatDelta]:
        """The next reply, word by word; its calls in two pieces each."""
        result = self.chat(request)
        words = result.content.split(" ") if result.content else []
        for index, word in enumerate(words):
            yield ChatDelta(text=word if index == 0 else f" {word}")
        for index, call in enumerate(result.tool_calls):
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
