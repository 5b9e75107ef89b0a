"""Answers without a model as words: one word is one token, in streams, counts and budgets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from eft_engine import Usage
from eft_integrations.chat.messages import InvalidToolCall, Message, ToolCall
from eft_integrations.chat.request import CallDelta, ChatDelta, ChatRequest, ChatResult
from eft_integrations.json_types import JsonObject

CUT_CALL, CUT_JSON = "the text ended inside the call", "the text ended inside the JSON"
WORD = re.compile(r"\s*\S+")


def count(text: str) -> int:
    """Tokens of a text: its words."""
    return len(text.split())


def prompt_tokens(request: ChatRequest) -> int:
    """Words of all messages, or of the text."""
    if request.prompt is not None:
        return count(request.prompt)
    return sum(count(message.content) for message in request.messages)


def whole(message: Message, request: ChatRequest, metadata: JsonObject) -> ChatResult:
    """A message as an answer that nothing cut. A call is a token."""
    completion = count(f"{message.reasoning} {message.content}") + len(message.tool_calls)
    return _result(message, (), "tool_calls" if message.tool_calls else "stop", completion, request, metadata)


def within_limits(message: Message, request: ChatRequest, metadata: JsonObject) -> ChatResult:
    """A message as far as the `stop`, `reasoning_budget` and `max_tokens` of a request let it come. A call costs a token beside the
    words of its arguments.

    >>> request = ChatRequest(sampling={"max_tokens": 2, "stop": ["four"]})
    >>> cut = within_limits(Message("assistant", "one two three"), request, {})
    >>> cut.content, cut.finish_reason, within_limits(Message("assistant", "one four"), request, {}).content
    ('one two', 'length', 'one ')
    """
    max_tokens = request.sampling.get("max_tokens")
    left = len(message.reasoning) + len(message.content) + 10**9 if max_tokens is None else int(max_tokens)
    budget = request.reasoning_budget
    allowed = message.reasoning if budget is None else _first_words(message.reasoning, budget)
    if allowed != message.reasoning:
        metadata = {**metadata, "reasoning_budget_reached": True}
    thought = _first_words(allowed, left)
    left -= count(thought)
    content, stop = (message.content, None) if request.response_schema is not None else _before_stop(message, request)
    text = _first_words(content, left)
    left -= count(text)
    calls: list[ToolCall] = []
    broken: tuple[InvalidToolCall, ...] = ()
    is_cut = thought != allowed or text != content
    for call in message.tool_calls:
        arguments = _first_words(call.arguments, left - 1)
        if is_cut or left < 1 or arguments != call.arguments:
            if left >= 1 and not is_cut:
                broken = (InvalidToolCall(f"{call.name} {arguments}", CUT_CALL, call.name, call.call_id, arguments),)
                left = 0
            is_cut = True
            break
        calls.append(call)
        left -= 1 + count(arguments)
    if is_cut and request.response_schema is not None and not message.tool_calls:
        metadata = {**metadata, "format_error": CUT_JSON}
    told = Message("assistant", text, tuple(calls), reasoning=thought)
    if not is_cut:
        metadata = metadata if stop is None else {**metadata, "stop_sequence": stop}
        return whole(told, request, metadata)
    return _result(told, broken, "length", int(max_tokens or 0), request, metadata)


def _result(
    message: Message,
    broken: tuple[InvalidToolCall, ...],
    reason: str,
    completion: int,
    request: ChatRequest,
    metadata: JsonObject,
) -> ChatResult:
    return ChatResult(
        content=message.content,
        tool_calls=message.tool_calls,
        invalid_tool_calls=broken,
        finish_reason="length" if reason == "length" else "tool_calls" if reason == "tool_calls" else "stop",
        usage=Usage(prompt_tokens(request), completion, reasoning_tokens=count(message.reasoning)),
        logprobs=None,
        metadata=metadata,
        reasoning=message.reasoning,
    )


def _first_words(text: str, most: int) -> str:
    words = WORD.findall(text)
    return text if len(words) <= most else "".join(words[: max(most, 0)])


def _before_stop(message: Message, request: ChatRequest) -> tuple[str, str | None]:
    """The content before the first stop string, and which one that is."""
    text, stops = message.content, request.sampling.get("stop") or ()
    found = [
        (text.index(stop), stop) for stop in ([stops] if isinstance(stops, str) else stops) if stop and stop in text
    ]
    if not found:
        return text, None
    end, stop = min(found)
    return text[:end], stop


def pieces(result: ChatResult) -> Iterator[ChatDelta]:
    """An answer word by word, its calls in two pieces each; the last piece is the whole of it."""
    for word in _words(result.reasoning):
        yield ChatDelta(reasoning=word)
    for word in _words(result.content):
        yield ChatDelta(text=word)
    for index, call in enumerate((*result.tool_calls, *_begun(result.invalid_tool_calls))):
        yield ChatDelta(call=CallDelta(index, call.call_id, call.name))
        yield ChatDelta(call=CallDelta(index, arguments=call.arguments))
    yield ChatDelta(result=result)


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
