"""OpenAI's JSON to the neutral form and back: what the server reads and what adapters for OpenAI-shaped hosts share.

Everything wrong raises `InvalidOptionError`, whose `option` is the path of the field (`messages.2.content`).
"""

from __future__ import annotations

import codecs
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

from eft_engine import TokenLogprobs, Usage, errors
from eft_integrations.chat.messages import InvalidToolCall, Message, Role, Tool, ToolCall
from eft_integrations.chat.request import CallDelta, ChatResult, ToolChoice
from eft_integrations.json_types import Json, JsonObject
from eft_integrations.wire.reasoning import PARTS, thought_form, to_thought

ROLES: dict[str, Role] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""OpenAI's roles, and what other hosts call them."""
TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})
UNSEEN_PARTS = PARTS | {
    "tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "function_call", "server_tool_call",
}  # fmt: skip
"""Parts of an assistant turn that are no text of it: a thought, and what says again what its `tool_calls` hold."""


def wrong(option: str, message: str, value: object = None) -> errors.InvalidOptionError:
    """The error of one field."""
    return errors.InvalidOptionError(f"{option}: {message}", option=option, value=value)


# ---- what is asked -------------------------------------------------------------------------------------------------------


def to_messages(messages: Sequence[Mapping[str, object]]) -> tuple[Message, ...]:
    """The conversation in the neutral form.

    Raises:
        InvalidOptionError: a role that no model knows, content that is not text, or a tool call without a name.
    """
    return tuple(_to_message(message, f"messages.{index}") for index, message in enumerate(messages))


def name_results(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The conversation with the names of calls on their results, for hosts that write ids only."""
    named = []
    names: dict[str | None, str] = {}
    for message in messages:
        names |= {call.call_id: call.name for call in message.tool_calls}
        if message.role == "tool" and message.name is None:
            message = dataclasses.replace(message, name=names.get(message.tool_call_id))
        named.append(message)
    return tuple(named)


def _to_message(message: Mapping[str, object], where: str) -> Message:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise wrong(f"{where}.role", f"must be one of {', '.join(ROLES)}, got {role!r}", role)
    return Message(
        ROLES[role],
        to_text(message.get("content"), f"{where}.content"),
        tool_calls=tuple(
            _to_call(call, f"{where}.tool_calls.{index}")
            for index, call in enumerate(_listed(message.get("tool_calls"), f"{where}.tool_calls"))
        ),
        tool_call_id=_to_name(message.get("tool_call_id"), f"{where}.tool_call_id"),
        name=_to_name(message.get("name"), f"{where}.name"),
        reasoning=to_thought(message) if ROLES[role] == "assistant" else "",
    )


def _listed(value: object, where: str) -> Sequence[object]:
    match value:
        case None:
            return ()
        case list() | tuple():
            return value
    raise wrong(where, f"must be a list, got {type(value).__name__}", value)


def _to_name(value: object, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise wrong(where, f"must be a string, got {type(value).__name__}", value)


def to_text(content: object, where: str) -> str:
    """Content as text: a string, nothing, or a list of text parts."""
    match content:
        case None:
            return ""
        case str():
            return content
        case list() | tuple():
            return "".join(_part_text(part, f"{where}.{index}") for index, part in enumerate(content))
    raise wrong(where, f"must be a string or a list of text parts, got {type(content).__name__}")


def _part_text(part: object, where: str) -> str:
    match part:
        case str():
            return part
        case {"type": str(kind)} if kind in UNSEEN_PARTS:
            return ""
        case {"type": "json", "json": value}:
            return json.dumps(value, ensure_ascii=False)
        case {"type": kind} if not (isinstance(kind, str) and kind in TEXT_PARTS):
            raise wrong(where, f"content of type {kind!r} is not text; this model reads text only")
        case {"text": str(text)} | {"refusal": str(text)}:
            return text
        case {"type": _}:
            raise wrong(where, "a text part needs a text")
    raise wrong(where, 'a part is written {"type": "text", "text": ...}')


def _to_call(call: object, where: str) -> ToolCall:
    match call:
        case {"function": {"name": str(name), **function}, **rest}:
            return ToolCall(str(rest.get("id") or ""), name, arguments_text(function.get("arguments") or "{}"))
    raise wrong(where, 'a call is written {"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}')


def arguments_text(arguments: object) -> str:
    """A call's arguments as JSON text, which is how OpenAI writes them; hosts hold them as objects too.

    Raises:
        InvalidOptionError: they hold what JSON cannot.
    """
    try:
        return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise wrong("arguments", f"the arguments of a call are no JSON: {error}", arguments) from None


def to_tools(tools: Iterable[object], *, strict: bool | None = None) -> tuple[Tool, ...]:
    """Tools in the neutral form; functions written either nested (chat completions) or flat (responses). `strict` holds for those
    that do not say it themselves.
    """
    return tuple(_to_tool(tool, f"tools.{index}", strict=bool(strict)) for index, tool in enumerate(tools))


def _to_tool(tool: object, where: str, *, strict: bool) -> Tool:
    match tool:
        case {"function": Mapping() as function, **rest} if rest.get("type", "function") == "function":
            pass
        case Mapping() as function if function.get("type") == "function":
            pass
        case {"type": kind} if kind != "function":
            raise wrong(where, f"tools of type 'function' only, got {kind!r}")
        case _:
            raise wrong(where, f'a tool is written {{"type": "function", "function": {{...}}}}, got {tool!r}')
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise wrong(where, "a function needs a name")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise wrong(f"{where}.parameters", "must be a JSON schema of type object")
    own = function.get("strict")
    return Tool(name, str(function.get("description") or ""), parameters, strict if own is None else bool(own))


def to_tool_choice(
    value: object, tools: tuple[Tool, ...], *, parallel: bool = True
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
    return ToolChoice.parse(value, tools, parallel=parallel), tools


def to_response_schema(response_format: object, *, option: str = "response_format") -> dict[str, object] | None:
    """The JSON schema that a response format asks for (chat completions' form, or `text.format` of responses).

    Raises:
        InvalidOptionError: it is none of text, json_object and json_schema, or the schema is missing.
    """
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object", "schema": Mapping() as schema}:  # as llama.cpp has it
            return dict(schema)
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema}}:
            return dict(schema)
        case {"type": "json_schema", "schema": Mapping() as schema}:
            return dict(schema)
        case {"type": "json_schema"}:
            raise wrong(option, "json_schema needs a schema", response_format)
    raise wrong(option, "type must be text, json_object or json_schema", response_format)


def is_strict(response_format: object) -> bool:
    """Whether a response format wants a schema refused of which a mask cannot hold every keyword."""
    match response_format:
        case {"type": "json_schema", "json_schema": {"strict": bool(strict)}}:
            return strict
        case {"type": "json_schema", "strict": bool(strict)}:
            return strict
    return False


def schema_format(name: str, schema: Mapping[str, object]) -> dict[str, object]:
    """The response format that asks for JSON of a schema."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


def of_ollamas_format(value: object) -> dict[str, object] | None:
    """The response format that a `format` of Ollama means: any JSON, or that of a schema; None: it says nothing.

    >>> of_ollamas_format("json"), of_ollamas_format("")
    ({'type': 'json_object'}, None)

    Raises:
        InvalidOptionError: it is neither.
    """
    match value:
        case None | "":
            return None
        case "json":
            return {"type": "json_object"}
        case Mapping():
            return schema_format(str(value.get("title") or "answer"), value)
    raise wrong("format", f'must be "json" or a JSON schema, got {value!r}', value)


# ---- what is answered ----------------------------------------------------------------------------------------------------


def call_delta_form(delta: CallDelta) -> JsonObject:
    """A piece of a tool call: id and name come once and first, arguments follow."""
    if delta.call_id is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    function = {"name": delta.name, "arguments": delta.arguments}
    return {"index": delta.index, "id": delta.call_id, "type": "function", "function": function}


def message_form(result: ChatResult) -> JsonObject:
    """The whole answer as an assistant message; content is null where there are only calls."""
    message: JsonObject = {"role": "assistant", "content": result.content, "refusal": None}
    message |= thought_form(result.reasoning)
    if result.tool_calls:
        message["content"] = result.content or None
        message["tool_calls"] = [call.as_openai() for call in result.tool_calls]
    return message


def logprob_form(token: TokenLogprobs) -> JsonObject:
    """One token's log-probabilities; `eft` holds those of the single members. `bytes` are null where a token has none."""
    return {
        "token": token.token,
        "bytes": _bytes_form(token.utf8),
        "logprob": token.logprob,
        "top_logprobs": [
            {"token": top.token, "bytes": _bytes_form(top.utf8), "logprob": top.logprob} for top in token.top
        ],
        "eft": dict(token.members),
    }


def _bytes_form(utf8: Sequence[int] | None) -> list[Json] | None:
    return None if utf8 is None else list(utf8)


class TextOffsets:
    """Where in a text its tokens begin, in characters: a token that goes on with a character begins where that one does.

    Args:
        start: characters that stand before the first token.

    >>> parts = [(0x61,), (0xC3,), (0xBC,), (0x62,), None]
    >>> TextOffsets().of([TokenLogprobs(0, "", 0.0, (), {}, part) for part in parts])
    [0, 1, 1, 2, 3]
    """

    def __init__(self, start: int = 0) -> None:
        self._offset = start
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def of(self, tokens: Iterable[TokenLogprobs]) -> list[int]:
        """Offsets of the next tokens."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(bytes(token.utf8 or ())))
        return offsets


def usage_form(usages: Sequence[Usage], *, n: int | None = None) -> JsonObject:
    """Token counts of one prompt with all its answers, or of several with `n` answers each. A prompt counts once."""
    n = n or len(usages)
    prompts = [usages[start : start + n] for start in range(0, len(usages), n)]
    prompt = sum(answers[0].prompt_tokens for answers in prompts)
    cached = sum(min(usage.cached_prompt_tokens for usage in answers) for answers in prompts)
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": sum(usage.reasoning_tokens for usage in usages)},
    }


def logprobs_form(tokens: Iterable[TokenLogprobs]) -> JsonObject:
    """Log-probabilities of all tokens of an answer, or of a piece of it."""
    return {"content": [logprob_form(token) for token in tokens], "refusal": None}


def completion_form(result: ChatResult, model_name: str) -> JsonObject:
    """The whole answer as a chat completion; `eft` holds the weights in effect and what the request cost."""
    choice: JsonObject = {"index": 0, "message": message_form(result), "finish_reason": result.finish_reason}
    if result.logprobs is not None:
        choice["logprobs"] = logprobs_form(result.logprobs)
    return {
        "object": "chat.completion",
        "model": model_name,
        "choices": [choice],
        "usage": usage_form([result.usage]),
        "eft": report_form(result),
    }


def report_form(result: ChatResult) -> JsonObject:
    """What has to be known of an answer and has no place in OpenAI's forms: its metadata, and calls that are none."""
    report: JsonObject = dict(result.metadata)
    if result.invalid_tool_calls:
        report["invalid_tool_calls"] = [invalid_call_form(call) for call in result.invalid_tool_calls]
    return report


def invalid_call_form(call: InvalidToolCall) -> JsonObject:
    """What was written of a call that is none, and why; what is not known of it is left out.

    >>> invalid_call_form(InvalidToolCall("<tool_call>", "the text ended inside the call"))
    {'text': '<tool_call>', 'reason': 'the text ended inside the call'}
    """
    return {name: value for name, value in dataclasses.asdict(call).items() if value is not None}
