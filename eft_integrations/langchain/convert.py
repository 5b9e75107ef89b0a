"""LangChain's tools and schemas to the neutral form, by way of OpenAI's, and answers back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from langchain_core.messages import AIMessage
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call
from langchain_core.outputs import ChatGeneration
from langchain_core.outputs import ChatResult as LangChainResult

from eft_integrations.chat.messages import Tool
from eft_integrations.chat.request import ChatResult
from eft_integrations.langchain.schemas import answer_schema, tool_form
from eft_integrations.wire import openai as openai_wire

OPENAI_FORMATS = ("text", "json_object", "json_schema")
"""Types of OpenAI's `response_format`; another mapping is a schema."""
THOUGHT = "reasoning_content"
"""Where LangChain looks for a thought in `additional_kwargs`, for `content_blocks`."""


def to_tools(tools: Sequence[object]) -> tuple[Tool, ...]:
    """Tools in the neutral form."""
    return openai_wire.to_tools(openai_tools(tools))


def openai_tools(tools: Iterable[object], *, strict: bool | None = None) -> list[object]:
    """Tools in OpenAI's form, from anything that LangChain calls a tool."""
    return [tool_form(tool, strict=strict) for tool in tools]


def openai_format(response_format: object) -> object:
    """What `response_format` asks for in OpenAI's form: it may be that already, or a schema in any of LangChain's forms."""
    match response_format:
        case None:
            return None
        case {"type": kind} if kind in OPENAI_FORMATS:
            return response_format
    schema = answer_schema(response_format)
    return openai_wire.schema_format(str(schema["title"]), schema)


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
        args = broken.text if broken.arguments is None else broken.arguments
        invalid.append(invalid_tool_call(name=broken.name, args=args, id=broken.call_id, error=broken.reason))
    message = AIMessage(
        content=result.content,
        additional_kwargs={THOUGHT: result.reasoning} if result.reasoning else {},
        tool_calls=calls,
        invalid_tool_calls=invalid,
        usage_metadata=usage_metadata(result),
        response_metadata=response_metadata(result, model_name),
    )
    info = {"finish_reason": result.finish_reason}
    return LangChainResult(generations=[ChatGeneration(message=message, generation_info=info)])


def usage_metadata(result: ChatResult) -> UsageMetadata:
    """Token counts; `cache_read` are prompt tokens that no member had to read again, `reasoning` those of the thought."""
    usage = result.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_prompt_tokens),
        output_token_details=OutputTokenDetails(reasoning=usage.reasoning_tokens),
    )


def response_metadata(result: ChatResult, model_name: str) -> dict[str, object]:
    """Why the answer ended, the weights in effect and what it cost; log-probabilities in ChatOpenAI's form."""
    metadata: dict[str, object] = {
        "model_name": model_name,
        "model_provider": "eft",
        "finish_reason": result.finish_reason,
        "eft": openai_wire.report_form(result),
    }
    if result.logprobs is not None:
        metadata["logprobs"] = openai_wire.logprobs_form(result.logprobs)
    return metadata
