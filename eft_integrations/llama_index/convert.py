"""LlamaIndex's messages to the neutral form, by way of OpenAI's, and answers back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from llama_index.core.base.llms import types
from llama_index.core.tools.types import ToolMetadata
from pydantic import BaseModel

from eft_engine import TokenLogprobs
from eft_engine.outputs import TopToken
from eft_integrations.chat.messages import Message, ToolCall
from eft_integrations.chat.request import ChatDelta, ChatResult
from eft_integrations.chat.schemas.display import untitled
from eft_integrations.class_schema import schema_of_class
from eft_integrations.json_types import JsonObject
from eft_integrations.so_far import AnswerSoFar
from eft_integrations.wire import openai as openai_wire
from eft_integrations.wire.reasoning import thought_text

THOUGHT_DELTA = "thinking_delta"
"""Where agents look for a piece of a thought in a chunk's `additional_kwargs`."""


def to_messages(messages: Iterable[types.ChatMessage]) -> tuple[Message, ...]:
    """The conversation in the neutral form. What was passed in is only read.

    Raises:
        ValueError: content that is not text (images, audio, files).
    """
    return openai_wire.name_results(openai_wire.to_messages([_openai_form(message) for message in messages]))


def _openai_form(message: types.ChatMessage) -> dict[str, object]:
    """Calls are blocks, or else already OpenAI's, where older integrations keep them: in `additional_kwargs`."""
    extra = message.additional_kwargs
    calls: Sequence[object] = [
        {"id": block.tool_call_id, "function": {"name": block.tool_name, "arguments": block.tool_kwargs}}
        for block in message.blocks
        if isinstance(block, types.ToolCallBlock)
    ] or [call.model_dump() if isinstance(call, BaseModel) else call for call in extra.get("tool_calls") or ()]
    return {
        "role": message.role.value,
        "content": _text(message.blocks),
        "tool_calls": calls,
        "tool_call_id": extra.get("tool_call_id"),
        "name": extra.get("name"),
        "reasoning_content": thought_text(
            [block.content for block in message.blocks if isinstance(block, types.ThinkingBlock)]
        ),
    }


def _text(blocks: Sequence[types.ContentBlock]) -> str:
    """Texts of the blocks, one below the other, as `ChatMessage.content` joins them."""
    parts = []
    for block in blocks:
        match block:
            case types.TextBlock():
                parts.append(block.text)
            case types.CitableBlock():
                parts.append(_text(block.content))
            case types.CitationBlock():
                parts.append(_text([block.cited_content]))
            case types.ToolCallBlock() | types.ThinkingBlock() | types.CachePoint():
                pass
            case _:
                raise ValueError(f"content of type {block.block_type!r} is not text; this model reads text only")
    return "\n".join(parts)


def tool_form(metadata: ToolMetadata) -> JsonObject:
    """A tool in OpenAI's form with the whole schema of its class, of which LlamaIndex' own form keeps the properties only."""
    form: dict[str, Any] = metadata.to_openai_tool(skip_length_check=True)
    if metadata.fn_schema is None:
        return form
    schema = schema_of_class(metadata.fn_schema)
    parameters = untitled({key: value for key, value in schema.items() if key != "description"})
    return {**form, "function": {**form["function"], "parameters": parameters}}


# ---- answers -------------------------------------------------------------------------------------------------------------


def to_chat_response(result: ChatResult, model_name: str, *, delta: str | None = None) -> types.ChatResponse:
    """The whole answer; calls that are none are in the message's `additional_kwargs["invalid_tool_calls"]`."""
    message = _assistant(
        result.content,
        result.tool_calls,
        types.ThinkingBlock(content=result.reasoning, num_tokens=result.usage.reasoning_tokens or None),
        is_whole=True,
    )
    if result.invalid_tool_calls:
        broken = [openai_wire.invalid_call_form(call) for call in result.invalid_tool_calls]
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


def _assistant(
    text: str, calls: Sequence[ToolCall], thought: types.ThinkingBlock, *, is_whole: bool
) -> types.ChatMessage:
    """An assistant turn with its calls in both forms: blocks, and OpenAI's, which LlamaIndex' streaming programs read.

    The arguments of a call that is not whole yet stay text. A thought without content is left out.
    """
    blocks = [
        types.ToolCallBlock(
            tool_call_id=call.call_id,
            tool_name=call.name,
            tool_kwargs=json.loads(call.arguments, strict=False) if is_whole else call.arguments,
        )
        for call in calls
    ]
    thoughts = [thought] if thought.content else []
    texts = [types.TextBlock(text=text)] if text or not blocks else []
    extra = {"tool_calls": [openai_wire.call_form(call) for call in calls]} if calls else {}
    return types.ChatMessage(
        role=types.MessageRole.ASSISTANT, blocks=[*thoughts, *texts, *blocks], additional_kwargs=extra
    )


def _logprobs(token: TokenLogprobs) -> list[types.LogProb]:
    """The chosen one first, then the alternatives, best first."""
    entries: list[TokenLogprobs | TopToken] = [token, *(top for top in token.top if top.token_id != token.token_id)]
    return [types.LogProb(token=own.token, logprob=own.logprob, bytes=list(own.token.encode())) for own in entries]


class ChatChunks:
    """The chunks of a streamed answer: every one holds the message so far and what is new."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self._so_far = AnswerSoFar()

    def feed(self, delta: ChatDelta) -> types.ChatResponse:
        """The next chunk; the last has the whole answer, usage and `raw`."""
        if delta.result is not None:
            return to_chat_response(delta.result, self._model_name, delta="")
        self._so_far.add(delta)
        thought = types.ThinkingBlock(content=self._so_far.reasoning)
        message = _assistant(self._so_far.text, self._so_far.calls, thought, is_whole=False)
        extra = {THOUGHT_DELTA: delta.reasoning} if delta.reasoning else {}
        return types.ChatResponse(message=message, delta=delta.text, additional_kwargs=extra)

    def feed_text(self, delta: ChatDelta) -> types.CompletionResponse:
        """The next chunk of an answer to a text."""
        return to_completion(self.feed(delta))
