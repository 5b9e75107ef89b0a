"""Anthropic's JSON to the neutral form: turns made of blocks, tools and formats.

Everything wrong raises `InvalidOptionError`, whose `option` is the path of the field (`messages.2.content.0`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence

from eft_integrations.chat.messages import Message, Tool, ToolCall
from eft_integrations.chat.request import ToolChoice
from eft_integrations.wire.openai import arguments_text, name_results, wrong

UNSIGNED = "unsigned"
"""The `signature` of a thought. It is nobody's: thoughts are taken back as they come. It is not empty, because some clients leave
out thoughts without one when they send a conversation back."""


def to_conversation(system: object, messages: Sequence[Mapping[str, object]]) -> tuple[Message, ...]:
    """The system's text and the turns. Results of tools are turns of their own; turns of one role that follow each
    other are one, as Anthropic has it.

    Raises:
        InvalidOptionError: a role or a block that cannot be read, or a last turn of the assistant's.
    """
    turns = [Message("system", text)] if (text := to_text(system, "system")) else []
    for index, message in enumerate(messages):
        where, content = f"messages.{index}", message.get("content")
        match message.get("role"):
            case "user":
                turns += _user_turns(content, f"{where}.content")
            case "assistant":
                turns.append(_assistant_turn(content, f"{where}.content"))
            case "system":
                turns.append(Message("system", to_text(content, f"{where}.content")))
            case role:
                raise wrong(f"{where}.role", f"must be user, assistant or system, got {role!r:.60}", role)
    if turns[-1:] and turns[-1].role == "assistant":
        raise wrong(
            f"messages.{len(messages) - 1}",
            "the last message is the assistant's, and this server does not go on with one; end with a user's message, or send "
            "a text that is rendered already to POST /v1/completions",
        )
    return name_results(_joined(turns))


def _joined(turns: Sequence[Message]) -> Iterator[Message]:
    for (role, _), group in itertools.groupby(turns, key=lambda turn: (turn.role, turn.tool_call_id)):
        own = list(group)
        if role not in ("user", "assistant"):
            yield from own
            continue
        yield Message(
            role,
            "\n\n".join(filter(None, (turn.content for turn in own))),
            tuple(call for turn in own for call in turn.tool_calls),
            reasoning="\n\n".join(filter(None, (turn.reasoning for turn in own))),
        )


def to_text(content: object, where: str, *, between: str = "\n\n") -> str:
    """Content as text: a string, nothing, or a list of blocks that hold text."""
    match content:
        case None:
            return ""
        case str():
            return content
        case list():
            return between.join(_block_text(block, f"{where}.{index}") for index, block in enumerate(content))
    raise wrong(where, f"must be a string or a list of blocks, got {type(content).__name__}")


def _block_text(block: object, where: str) -> str:
    if not isinstance(block, Mapping):
        raise wrong(where, 'a block is written {"type": "text", "text": ...}')
    match block:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "document", "source": {"type": "text", "data": str(text)}}:
            return _headed(block, text)
        case {"type": "document", "source": {"type": "content", "content": content}}:
            return _headed(block, to_text(content, f"{where}.source.content"))
        case {"type": "search_result", "content": list() as content}:
            return _headed(block, to_text(content, f"{where}.content"))
        case {"type": "text"}:
            raise wrong(where, "a text block needs a text")
        case {"type": str(kind)}:
            raise wrong(
                where,
                f"blocks of type {kind!r:.60} cannot be read here; this model reads text and plain-text documents",
            )
    raise wrong(where, 'a block is written {"type": "text", "text": ...}')


def _headed(block: Mapping[str, object], text: str) -> str:
    """A document with what is known of it."""
    heads = [str(block[name]) for name in ("title", "context", "source") if isinstance(block.get(name), str)]
    return "\n".join([*heads, text])


def _user_turns(content: object, where: str) -> Iterator[Message]:
    """What the user says, and results of tools, in their order."""
    if not isinstance(content, list):
        yield Message("user", to_text(content, where))
        return
    said: list[str] = []
    for index, block in enumerate(content):
        if not (isinstance(block, Mapping) and block.get("type") == "tool_result"):
            said.append(_block_text(block, f"{where}.{index}"))
            continue
        if said:
            yield Message("user", "\n\n".join(said))
            said = []
        yield _result(block, f"{where}.{index}")
    if said or not content:
        yield Message("user", "\n\n".join(said))


def _result(block: Mapping[str, object], where: str) -> Message:
    call_id = block.get("tool_use_id")
    if not isinstance(call_id, str):
        raise wrong(f"{where}.tool_use_id", "a tool_result needs the id of its tool_use", call_id)
    text = to_text(block.get("content"), f"{where}.content")
    if block.get("is_error") is True and not text.lower().startswith("error"):
        text = f"Error: {text}"  # templates have no other place to say it
    return Message("tool", text, tool_call_id=call_id)


def _assistant_turn(content: object, where: str) -> Message:
    if not isinstance(content, list):
        return Message("assistant", to_text(content, where))
    thoughts, said, calls = [], [], []
    for index, block in enumerate(content):
        match block:
            case {"type": "thinking", "thinking": str(thought)}:
                thoughts.append(thought)
            case {"type": "redacted_thinking"}:  # nobody here can read one
                continue
            case {"type": "tool_use", "id": str(call_id), "name": str(name)}:
                calls.append(ToolCall(call_id, name, arguments_text(block.get("input") or {})))
            case _:
                said.append(_block_text(block, f"{where}.{index}"))
    return Message("assistant", "".join(said), tuple(calls), reasoning="\n\n".join(filter(None, thoughts)))


# ---- tools ---------------------------------------------------------------------------------------------------------------


def is_own_tool(tool: Mapping[str, object]) -> bool:
    """Whether a tool brings its schema; the others are known to Anthropic's models or run by Anthropic's servers."""
    return tool.get("type") in (None, "custom")


def to_tools(tools: Sequence[Mapping[str, object]], *, strict: bool | None = None) -> tuple[Tool, ...]:
    """The tools that bring their schemas.

    Raises:
        InvalidOptionError: one has no name, or no schema.
    """
    return tuple(
        _to_tool(tool, f"tools.{index}", strict=bool(strict)) for index, tool in enumerate(tools) if is_own_tool(tool)
    )


def _to_tool(tool: Mapping[str, object], where: str, *, strict: bool) -> Tool:
    match tool:
        case {"name": str(name), "input_schema": Mapping() as schema} if name:
            own = tool.get("strict")
            return Tool(name, str(tool.get("description") or ""), schema, strict if own is None else bool(own))
    raise wrong(where, 'a tool is written {"name": ..., "description": ..., "input_schema": {...}}')


def to_tool_choice(value: Mapping[str, object] | None, tools: Sequence[Tool]) -> ToolChoice:
    """The choice.

    Raises:
        InvalidOptionError: it names no tool that was given, or is none of Anthropic's forms.
    """
    if value is None:
        return ToolChoice()
    parallel = value.get("disable_parallel_tool_use") is not True
    match value:
        case {"type": "tool", "name": str(name)}:
            return ToolChoice.parse({"name": name}, tools, parallel=parallel)
        case {"type": "auto" | "any" | "none" as kind}:
            return ToolChoice.parse(kind, tools, parallel=parallel)
    raise wrong("tool_choice", f"type must be auto, any, none, or tool with a name, got {json.dumps(value):.80}", value)


def to_schema(value: Mapping[str, object] | None, option: str) -> Mapping[str, object] | None:
    """The JSON schema of a format.

    Raises:
        InvalidOptionError: it is no `json_schema` with a schema.
    """
    match value:
        case None:
            return None
        case {"type": "json_schema", "schema": Mapping() as schema}:
            return schema
    raise wrong(
        option, f'a format is written {{"type": "json_schema", "schema": {{...}}}}, got {json.dumps(value):.80}', value
    )
