"""LlamaIndex's messages and tools to the neutral form, and answers back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ChatResponse,
    CitableBlock,
    CitationBlock,
    CompletionResponse,
    ContentBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from eft_engine import TokenLogprobs
from eft_integrations.chat.messages import Message, Role, Tool, ToolCall
from eft_integrations.chat.request import ChatDelta, ChatResult
from eft_integrations.wire import openai as openai_wire

ROLES: dict[MessageRole, Role] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}


def to_messages(messages: Iterable[ChatMessage]) -> list[Message]:
    """The conversation in the neutral form. What was passed in is only read.

    Raises:
        ValueError: content that is not text (images, audio, files).
    """
    converted = []
    names: dict[str | None, str] = {}
    for message in messages:
        role, extra = ROLES[message.role], message.additional_kwargs
        calls = _calls(message) if role == "assistant" else ()
        names |= {call.call_id: call.name for call in calls}
        call_id = extra.get("tool_call_id") if role == "tool" else None
        name = extra.get("name") or (names.get(call_id) if role == "tool" else None)
        converted.append(Message(role, _text(message.blocks), tool_calls=calls, tool_call_id=call_id, name=name))
    return converted


def _text(blocks: Sequence[ContentBlock]) -> str:
    """Texts of the blocks, one below the other, as `ChatMessage.content` joins them."""
    parts = []
    for block in blocks:
        match block:
            case TextBlock():
                parts.append(block.text)
            case CitableBlock():
                parts.append(_text(block.content))
            case CitationBlock():
                parts.append(_text([block.cited_content]))
            case ToolCallBlock() | ThinkingBlock() | CachePoint():
                pass
            case _:
                raise ValueError(f"content of type {block.block_type!r} is not text; this model reads text only")
    return "\n".join(parts)


def _calls(message: ChatMessage) -> tuple[ToolCall, ...]:
    """Calls of an assistant turn: its blocks, or else OpenAI's form, in which older integrations keep them."""
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if blocks:
        return tuple(ToolCall(block.tool_call_id or "", block.tool_name, _json(block.tool_kwargs)) for block in blocks)
    calls = []
    for call in message.additional_kwargs.get("tool_calls") or ():
        mapping = call if isinstance(call, Mapping) else call.model_dump()
        function = mapping["function"]
        calls.append(ToolCall(mapping.get("id") or "", function["name"], _json(function["arguments"])))
    return tuple(calls)


def _json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def to_tools(tools: Sequence[Mapping[str, Any]]) -> list[Tool]:
    """Tools in the neutral form, from OpenAI's.

    Raises:
        ValueError: one of them is not in OpenAI's form.
    """
    converted = []
    for tool in tools:
        match tool:
            case {"type": "function", "function": {"name": str(name)}}:
                function: Mapping[str, Any] = tool["function"]
                parameters = function.get("parameters") or {"type": "object", "properties": {}}
                converted.append(Tool(name, function.get("description") or "", parameters))
            case _:
                raise ValueError(f"a tool is written {{'type': 'function', 'function': {{...}}}}, got {tool!r}")
    return converted


# ---- answers -------------------------------------------------------------------------------------------------------------


def to_chat_response(result: ChatResult, model_name: str, *, delta: str | None = None) -> ChatResponse:
    """The whole answer; text that began as a call and did not become one is in `additional_kwargs["invalid_tool_calls"]`."""
    blocks = [
        ToolCallBlock(
            tool_call_id=call.call_id, tool_name=call.name, tool_kwargs=json.loads(call.arguments, strict=False)
        )
        for call in result.tool_calls
    ]
    message = _assistant(result.content, blocks, result.tool_calls)
    if result.invalid_tool_calls:
        broken = [{"text": call.text, "reason": call.reason} for call in result.invalid_tool_calls]
        message.additional_kwargs["invalid_tool_calls"] = broken
    return ChatResponse(
        message=message,
        raw=openai_wire.completion_form(result, model_name),
        delta=delta,
        logprobs=to_logprobs(result.logprobs),
        additional_kwargs=_usage(result),
    )


def to_completion_response(result: ChatResult, model_name: str, *, delta: str | None = None) -> CompletionResponse:
    """The whole answer to a text."""
    return CompletionResponse(
        text=result.content,
        raw=openai_wire.completion_form(result, model_name),
        delta=delta,
        logprobs=to_logprobs(result.logprobs),
        additional_kwargs=_usage(result),
    )


def _assistant(text: str, blocks: Sequence[ToolCallBlock], calls: Sequence[ToolCall]) -> ChatMessage:
    """An assistant turn with its calls in both forms: blocks, and OpenAI's, which LlamaIndex' streaming programs read."""
    texts = [TextBlock(text=text)] if text or not blocks else []
    extra = {"tool_calls": [openai_wire.call_form(call) for call in calls]} if calls else {}
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[*texts, *blocks], additional_kwargs=extra)


def _usage(result: ChatResult) -> dict[str, int]:
    usage = result.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def to_logprobs(tokens: Sequence[TokenLogprobs] | None) -> list[list[LogProb]] | None:
    """Per token the chosen one first, then the alternatives, best first."""
    if tokens is None:
        return None
    return [
        [
            LogProb(token=text, logprob=logprob, bytes=list(text.encode()))
            for text, logprob in (
                (token.token, token.logprob),
                *((top.token, top.logprob) for top in token.top if top.token_id != token.token_id),
            )
        ]
        for token in tokens
    ]


class ChatChunks:
    """Gathers the pieces of a streamed answer: every chunk holds the message so far and what is new."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self._text = ""
        self._calls: list[ToolCall] = []

    def feed(self, delta: ChatDelta) -> ChatResponse:
        """The next chunk; the last has the whole answer, usage and `raw`. A call still being written has its arguments as text."""
        if delta.result is not None:
            return to_chat_response(delta.result, self._model_name, delta="")
        self._text += delta.text
        if (piece := delta.call) is not None:
            if piece.name is not None:
                self._calls.append(ToolCall(piece.call_id or "", piece.name, ""))
            call = self._calls[piece.index]
            self._calls[piece.index] = ToolCall(call.call_id, call.name, call.arguments + piece.arguments)
        blocks = [
            ToolCallBlock(tool_call_id=call.call_id, tool_name=call.name, tool_kwargs=call.arguments)
            for call in self._calls
        ]
        return ChatResponse(message=_assistant(self._text, blocks, self._calls), delta=delta.text)


class CompletionChunks:
    """`ChatChunks` for a text."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self._text = ""

    def feed(self, delta: ChatDelta) -> CompletionResponse:
        """The next chunk; the last has the whole text, usage and `raw`."""
        if delta.result is not None:
            return to_completion_response(delta.result, self._model_name, delta="")
        self._text += delta.text
        return CompletionResponse(text=self._text, delta=delta.text)
