"""LangChain's messages, tools and schemas to the neutral form, and answers back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool

from eft_integrations.chat.messages import Message, Role, Tool, ToolCall
from eft_integrations.chat.request import ChatDelta, ChatResult
from eft_integrations.wire import openai as openai_wire

NOT_TEXT = frozenset(
    {"tool_use", "tool_call", "tool_call_chunk", "function_call", "server_tool_call", "reasoning", "thinking"}
)
"""Content blocks of an assistant turn that say again what `tool_calls` holds, or that models are not shown again."""

OPENAI_FORMATS = ("text", "json_object", "json_schema")
"""Types of OpenAI's `response_format`; another mapping is a schema."""

ROLES: dict[str, Role] = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}


def to_messages(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """The conversation in the neutral form.

    Raises:
        ValueError: content that is not text (images, audio, files), or a role that no model knows.
    """
    return tuple(_to_message(message) for message in messages)


def _to_message(message: BaseMessage) -> Message:
    text = _text(message.content)
    match message:
        case SystemMessage():
            return Message("system", text, name=message.name)
        case HumanMessage():
            return Message("user", text, name=message.name)
        case AIMessage():
            calls = tuple(
                ToolCall(call["id"] or "", call["name"], json.dumps(call["args"], ensure_ascii=False))
                for call in message.tool_calls
            )
            return Message("assistant", text, tool_calls=calls, name=message.name)
        case ToolMessage():
            return Message("tool", text, tool_call_id=message.tool_call_id, name=message.name)
        case ChatMessage(role=role) if role in ROLES:
            return Message(ROLES[role], text, name=message.name)
    raise ValueError(
        f"a message of type {type(message).__name__} (role {getattr(message, 'role', None)!r}) is not understood"
    )


def _text(content: str | Sequence[Any]) -> str:
    if isinstance(content, str):
        return content
    parts = []
    for block in content:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") == "text" or (block.get("type") is None and "text" in block):
            parts.append(block["text"])
        elif block.get("type") == "json":
            parts.append(json.dumps(block.get("json"), ensure_ascii=False))
        elif block.get("type") not in NOT_TEXT:
            raise ValueError(f"content of type {block.get('type')!r} is not text; this model reads text only")
    return "".join(parts)


def to_tools(tools: Sequence[Any]) -> tuple[Tool, ...]:
    """Tools in the neutral form, from anything that LangChain calls a tool."""
    converted = []
    for tool in tools:
        function = convert_to_openai_tool(tool)["function"]
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        converted.append(Tool(function["name"], function.get("description", ""), parameters))
    return tuple(converted)


def to_response_schema(response_format: Any) -> Mapping[str, Any] | None:
    """The JSON schema that `response_format` asks for: OpenAI's mapping, or a schema in any of LangChain's forms.

    Raises:
        ValueError: it is none of them.
    """
    if response_format is None or (
        isinstance(response_format, Mapping) and response_format.get("type") in OPENAI_FORMATS
    ):
        return openai_wire.to_response_schema(response_format)
    return convert_to_json_schema(response_format)


# ---- answers -------------------------------------------------------------------------------------------------------------


def to_ai_message(result: ChatResult, model_name: str) -> AIMessage:
    """The whole answer."""
    calls, invalid = [], []
    for call in result.tool_calls:
        try:
            calls.append(tool_call(name=call.name, args=json.loads(call.arguments, strict=False), id=call.call_id))
        except ValueError as error:
            invalid.append(invalid_tool_call(name=call.name, args=call.arguments, id=call.call_id, error=str(error)))
    for broken in result.invalid_tool_calls:
        invalid.append(invalid_tool_call(name=None, args=broken.text, id=None, error=broken.reason))
    return AIMessage(
        content=result.content,
        tool_calls=calls,
        invalid_tool_calls=invalid,
        usage_metadata=usage_metadata(result),
        response_metadata=response_metadata(result, model_name),
    )


def to_chunk_fields(delta: ChatDelta) -> dict[str, Any]:
    """Fields of the message chunk of one piece that is not the last."""
    if delta.call is None:
        return {"content": delta.text}
    call = delta.call
    chunk = tool_call_chunk(name=call.name, args=call.arguments, id=call.call_id, index=call.index)
    return {"content": "", "tool_call_chunks": [chunk]}


def usage_metadata(result: ChatResult) -> UsageMetadata:
    """Token counts; `cache_read` are prompt tokens that no member had to read again."""
    usage = result.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_prompt_tokens),
    )


def response_metadata(result: ChatResult, model_name: str) -> dict[str, Any]:
    """Why the answer ended, the weights in effect and what it cost; log-probabilities in ChatOpenAI's form."""
    metadata: dict[str, Any] = {
        "model_name": model_name,
        "model_provider": "eft",
        "finish_reason": result.finish_reason,
        "eft": dict(result.metadata),
    }
    if result.logprobs is not None:
        metadata["logprobs"] = openai_wire.logprobs_form(result.logprobs)
    return metadata
