"""Answers as LlamaIndex has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from llama_index.core.base.llms import types

from eft_engine import TokenLogprobs
from eft_engine.outputs import TopToken
from eft_integrations.chat.messages import InvalidToolCall, ToolCall
from eft_integrations.chat.request import ChatDelta, ChatResult
from eft_integrations.so_far import AnswerSoFar
from eft_integrations.wire import openai as openai_wire

THOUGHT_DELTA = "thinking_delta"
"""Where agents look for a piece of a thought in a chunk's `additional_kwargs`."""


def to_chat_response(result: ChatResult, model_name: str, *, delta: str | None = None) -> types.ChatResponse:
    """The whole answer; calls that are none are in the message's `additional_kwargs["invalid_tool_calls"]`."""
    read = [(call, _read(call.arguments)) for call in result.tool_calls]
    calls = [(call, arguments) for call, arguments in read if arguments is not None]
    unread = [_no_object(call) for call, arguments in read if arguments is None]
    thought = types.ThinkingBlock(content=result.reasoning, num_tokens=result.usage.reasoning_tokens or None)
    message = _assistant(result.content, calls, thought)
    if broken := [openai_wire.invalid_call_form(call) for call in (*result.invalid_tool_calls, *unread)]:
        message.additional_kwargs["invalid_tool_calls"] = broken
    counts = {name: count for name, count in openai_wire.usage_form([result.usage]).items() if isinstance(count, int)}
    return types.ChatResponse(
        message=message,
        raw=openai_wire.completion_form(result, model_name),
        delta=delta,
        logprobs=None if result.logprobs is None else [_logprobs(token) for token in result.logprobs],
        additional_kwargs=counts,
    )


def to_completion(response: types.ChatResponse) -> types.CompletionResponse:
    """An answer, or what there is of it, as that to a text."""
    same = {name: getattr(response, name) for name in ("raw", "delta", "logprobs", "additional_kwargs")}
    return types.CompletionResponse(text=response.message.content or "", **same)


def _read(arguments: str) -> dict[str, object] | None:
    """The arguments of a call; None where they are no JSON object."""
    try:
        value = json.loads(arguments, strict=False)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _no_object(call: ToolCall) -> InvalidToolCall:
    return InvalidToolCall(call.arguments, "its arguments are no JSON object", call.name, call.call_id, call.arguments)


def _assistant(
    text: str, calls: Sequence[tuple[ToolCall, dict[str, object] | str]], thought: types.ThinkingBlock
) -> types.ChatMessage:
    """An assistant turn with its calls in both forms: blocks, and OpenAI's, which LlamaIndex' streaming programs read.

    The arguments of a call that is not whole yet are text. A thought without content is left out.
    """
    blocks = [
        types.ToolCallBlock(tool_call_id=call.call_id, tool_name=call.name, tool_kwargs=arguments)
        for call, arguments in calls
    ]
    thoughts = [thought] if thought.content else []
    texts = [types.TextBlock(text=text)] if text or not blocks else []
    extra = {"tool_calls": [call.as_openai() for call, _ in calls]} if calls else {}
    return types.ChatMessage(
        role=types.MessageRole.ASSISTANT, blocks=[*thoughts, *texts, *blocks], additional_kwargs=extra
    )


def _logprobs(token: TokenLogprobs) -> list[types.LogProb]:
    """The chosen one first, then the alternatives, best first."""
    entries: list[TokenLogprobs | TopToken] = [token, *(top for top in token.top if top.token_id != token.token_id)]
    return [types.LogProb(token=own.token, logprob=own.logprob, bytes=list(own.token.encode())) for own in entries]


class ChatChunks:
    """The chunks of a streamed answer: every one holds the message so far and what is new.

    Args:
        model_name: tells it once the answer is whole; a server knows its name only when it has been asked something.
    """

    def __init__(self, model_name: Callable[[], str]) -> None:
        self._model_name = model_name
        self._so_far = AnswerSoFar()

    def feed(self, delta: ChatDelta) -> types.ChatResponse:
        """The next chunk; the last has the whole answer, usage and `raw`."""
        if delta.result is not None:
            return to_chat_response(delta.result, self._model_name(), delta="")
        self._so_far.add(delta)
        thought = types.ThinkingBlock(content=self._so_far.reasoning)
        calls = [(call, call.arguments) for call in self._so_far.calls]
        message = _assistant(self._so_far.text, calls, thought)
        extra = {THOUGHT_DELTA: delta.reasoning} if delta.reasoning else {}
        return types.ChatResponse(message=message, delta=delta.text, additional_kwargs=extra)

    def feed_text(self, delta: ChatDelta) -> types.CompletionResponse:
        """The next chunk of an answer to a text."""
        return to_completion(self.feed(delta))
