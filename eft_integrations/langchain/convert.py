"""LangChain's messages, tools and schemas to the neutral form, by way of OpenAI's, and answers back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_openai_messages
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk
from langchain_core.outputs import ChatResult as LangChainResult
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool

from eft_integrations.chat.messages import Message, Tool
from eft_integrations.chat.request import ChatDelta, ChatResult
from eft_integrations.wire import openai as openai_wire

OPENAI_FORMATS = ("text", "json_object", "json_schema")
"""Types of OpenAI's `response_format`; another mapping is a schema."""


def to_messages(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """The conversation in the neutral form.

    Raises:
        ValueError: content that is not text (images, audio, files), or a role that no model knows.
    """
    texts = [
        message.model_copy(update={"content": openai_wire.to_text(message.content, f"messages.{index}.content")})
        for index, message in enumerate(messages)
    ]
    return openai_wire.to_messages(convert_to_openai_messages(texts))


def to_tools(tools: Sequence[object]) -> tuple[Tool, ...]:
    """Tools in the neutral form."""
    return openai_wire.to_tools(openai_tools(tools))


def openai_tools(tools: Iterable[object], *, strict: bool | None = None) -> list[object]:
    """Tools in OpenAI's form, from anything that LangChain calls a tool."""
    return [convert_to_openai_tool(tool, strict=strict) for tool in tools]  # type: ignore[arg-type]


def openai_format(response_format: object) -> object:
    """What `response_format` asks for in OpenAI's form: it may be that already, or a schema in any of LangChain's forms."""
    match response_format:
        case None:
            return None
        case {"type": kind} if kind in OPENAI_FORMATS:
            return response_format
    schema = convert_to_json_schema(response_format)  # type: ignore[arg-type]
    return openai_wire.schema_format(schema.get("title", "answer"), schema)


# ---- answers -------------------------------------------------------------------------------------------------------------


def to_result(result: ChatResult, model_name: str) -> LangChainResult:
    """The whole answer."""
    calls, invalid = [], []
    for call in result.tool_calls:
        try:
            calls.append(tool_call(name=call.name, args=json.loads(call.arguments, strict=False), id=call.call_id))
        except ValueError as error:
            invalid.append(invalid_tool_call(name=call.name, args=call.arguments, id=call.call_id, error=str(error)))
    for broken in result.invalid_tool_calls:
        invalid.append(invalid_tool_call(name=None, args=broken.text, id=None, error=broken.reason))
    message = AIMessage(
        content=result.content,
        tool_calls=calls,
        invalid_tool_calls=invalid,
        usage_metadata=_usage_metadata(result),
        response_metadata=_response_metadata(result, model_name),
    )
    info = {"finish_reason": result.finish_reason}
    return LangChainResult(generations=[ChatGeneration(message=message, generation_info=info)])


def to_chunk(delta: ChatDelta, model_name: str) -> ChatGenerationChunk:
    """The chunk of one piece; the last has the counts and the reports."""
    if delta.result is not None:
        message = AIMessageChunk(
            content="",
            usage_metadata=_usage_metadata(delta.result),
            response_metadata=_response_metadata(delta.result, model_name),
            chunk_position="last",
        )
    elif (call := delta.call) is not None:
        piece = tool_call_chunk(name=call.name, args=call.arguments, id=call.call_id, index=call.index)
        message = AIMessageChunk(content="", tool_call_chunks=[piece])
    else:
        message = AIMessageChunk(content=delta.text)
    return ChatGenerationChunk(message=message)


def _usage_metadata(result: ChatResult) -> UsageMetadata:
    """Token counts; `cache_read` are prompt tokens that no member had to read again."""
    usage = result.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_prompt_tokens),
    )


def _response_metadata(result: ChatResult, model_name: str) -> dict[str, object]:
    """Why the answer ended, the weights in effect and what it cost; log-probabilities in ChatOpenAI's form."""
    metadata: dict[str, object] = {
        "model_name": model_name,
        "model_provider": "eft",
        "finish_reason": result.finish_reason,
        "eft": dict(result.metadata),
    }
    if result.logprobs is not None:
        metadata["logprobs"] = openai_wire.logprobs_form(result.logprobs)
    return metadata
