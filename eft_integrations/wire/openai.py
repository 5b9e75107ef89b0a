"""OpenAI's JSON to the neutral form and back: what the server reads and what adapters for OpenAI-shaped hosts share.

Everything wrong raises `InvalidOptionError`, whose `option` is the path of the field (`messages.2.content`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eft_engine import TokenLogprobs, Usage, errors
from eft_integrations.chat.messages import Message, Role, Tool, ToolCall
from eft_integrations.chat.request import CallDelta, ChatResult, ToolChoice

ROLES: dict[str, Role] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})


def wrong(option: str, message: str, value: object = None) -> errors.InvalidOptionError:
    """The error of one field."""
    return errors.InvalidOptionError(f"{option}: {message}", option=option, value=value)


# ---- what is asked -------------------------------------------------------------------------------------------------------


def to_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """The conversation in the neutral form.

    Raises:
        InvalidOptionError: a role that no model knows, content that is not text, or a tool call without a name.
    """
    return tuple(_to_message(message, f"messages.{index}") for index, message in enumerate(messages))


def _to_message(message: Mapping[str, Any], where: str) -> Message:
    role = message.get("role")
    if role not in ROLES:
        raise wrong(f"{where}.role", f"must be one of {', '.join(ROLES)}, got {role!r}", role)
    return Message(
        ROLES[role],
        to_text(message.get("content"), f"{where}.content"),
        tool_calls=tuple(
            _to_call(call, f"{where}.tool_calls.{index}") for index, call in enumerate(message.get("tool_calls") or ())
        ),
        tool_call_id=message.get("tool_call_id"),
        name=message.get("name"),
    )


def to_text(content: Any, where: str) -> str:
    """Content as text: a string, nothing, or a list of text parts."""
    match content:
        case None:
            return ""
        case str():
            return content
        case list() | tuple():
            return "".join(_part_text(part, f"{where}.{index}") for index, part in enumerate(content))
    raise wrong(where, f"must be a string or a list of text parts, got {type(content).__name__}")


def _part_text(part: Any, where: str) -> str:
    match part:
        case str():
            return part
        case {"type": str(kind)} if kind in TEXT_PARTS:
            text = part.get("text", part.get("refusal"))
            if isinstance(text, str):
                return text
            raise wrong(where, "a text part needs a text")
        case {"type": kind}:
            raise wrong(where, f"content of type {kind!r} is not text; this model reads text only")
    raise wrong(where, 'a part is written {"type": "text", "text": ...}')


def _to_call(call: Any, where: str) -> ToolCall:
    match call:
        case {"function": {"name": str(name), **function}}:
            arguments = function.get("arguments") or "{}"
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            return ToolCall(str(call.get("id") or ""), name, text)
    raise wrong(where, 'a call is written {"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}')


def to_tools(tools: Iterable[Any]) -> tuple[Tool, ...]:
    """Tools in the neutral form; functions written either nested (chat completions) or flat (responses)."""
    return tuple(_to_tool(tool, f"tools.{index}") for index, tool in enumerate(tools))


def _to_tool(tool: Any, where: str) -> Tool:
    if not isinstance(tool, Mapping) or tool.get("type", "function") != "function":
        kind = tool.get("type") if isinstance(tool, Mapping) else tool
        raise wrong(where, f"tools of type 'function' only, got {kind!r}")
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise wrong(where, "a function needs a name")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise wrong(f"{where}.parameters", "must be a JSON schema of type object")
    return Tool(name, str(function.get("description") or ""), parameters)


def to_tool_choice(
    value: Any, tools: tuple[Tool, ...], *, parallel: bool = True
) -> tuple[ToolChoice, tuple[Tool, ...]]:
    """The choice and the tools that it leaves (`allowed_tools` names some of them).

    Raises:
        InvalidOptionError: it names no tool that was given, or is none of OpenAI's forms.
    """
    if isinstance(value, Mapping) and value.get("type") == "allowed_tools":
        inner = value.get("allowed_tools", value)
        try:
            names = {tool.get("function", tool)["name"] for tool in inner["tools"]}
        except (LookupError, TypeError, AttributeError):
            raise wrong("tool_choice", "allowed_tools needs tools, each a function with a name", value) from None
        unknown = sorted(names - {tool.name for tool in tools}, key=str)
        if unknown:
            raise wrong("tool_choice", f"allowed_tools names {unknown[0]!r}, which is none of the tools", value)
        tools = tuple(tool for tool in tools if tool.name in names)
        value = inner.get("mode", "auto")
    try:
        return ToolChoice.parse(value, tools, parallel=parallel), tools
    except (ValueError, TypeError) as error:
        raise wrong("tool_choice", str(error), value) from None


def to_response_schema(response_format: Any, *, option: str = "response_format") -> Mapping[str, Any] | None:
    """The JSON schema that a response format asks for (chat completions' form, or `text.format` of responses).

    Raises:
        InvalidOptionError: it is none of text, json_object and json_schema, or the schema is missing.
    """
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema}}:
            return dict(schema)
        case {"type": "json_schema", "schema": Mapping() as schema}:
            return dict(schema)
        case {"type": "json_schema"}:
            raise wrong(option, "json_schema needs a schema", response_format)
    raise wrong(option, "type must be text, json_object or json_schema", response_format)


# ---- what is answered ----------------------------------------------------------------------------------------------------


def call_form(call: ToolCall) -> dict[str, Any]:
    """A whole tool call."""
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def call_delta_form(delta: CallDelta) -> dict[str, Any]:
    """A piece of a tool call: id and name come once and first, arguments follow."""
    if delta.call_id is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    function = {"name": delta.name, "arguments": delta.arguments}
    return {"index": delta.index, "id": delta.call_id, "type": "function", "function": function}


def message_form(result: ChatResult) -> dict[str, Any]:
    """The whole answer as an assistant message; content is null where there are only calls."""
    message: dict[str, Any] = {"role": "assistant", "content": result.content, "refusal": None}
    if result.tool_calls:
        message["content"] = result.content or None
        message["tool_calls"] = [call_form(call) for call in result.tool_calls]
    return message


def logprob_form(token: TokenLogprobs) -> dict[str, Any]:
    """One token's log-probabilities; `eft` holds those of the single members."""
    return {
        "token": token.token,
        "bytes": list(token.token.encode()),
        "logprob": token.logprob,
        "top_logprobs": [
            {"token": top.token, "bytes": list(top.token.encode()), "logprob": top.logprob} for top in token.top
        ],
        "eft": dict(token.members),
    }


def usage_form(usages: Sequence[Usage]) -> dict[str, Any]:
    """Token counts of one prompt with one or more answers."""
    prompt, completion = usages[0].prompt_tokens, sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": min(usage.cached_prompt_tokens for usage in usages)},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def logprobs_form(tokens: Iterable[TokenLogprobs]) -> dict[str, Any]:
    """Log-probabilities of all tokens of an answer, or of a piece of it."""
    return {"content": [logprob_form(token) for token in tokens], "refusal": None}


def completion_form(result: ChatResult, model_name: str) -> dict[str, Any]:
    """The whole answer as a chat completion; `eft` holds the weights in effect and what the request cost."""
    choice: dict[str, Any] = {"index": 0, "message": message_form(result), "finish_reason": result.finish_reason}
    if result.logprobs is not None:
        choice["logprobs"] = logprobs_form(result.logprobs)
    return {
        "object": "chat.completion",
        "model": model_name,
        "choices": [choice],
        "usage": usage_form([result.usage]),
        "eft": dict(result.metadata),
    }
