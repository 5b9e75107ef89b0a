"""Fields inside of messages, tools, formats and choices that are not used, as paths without indices (`messages.content.detail`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from eft_integrations.server.bodies.body import unused_of
from eft_integrations.server.bodies.idle_fields import QUIET_IN_MESSAGES
from eft_integrations.wire.openai import TEXT_PARTS

SCHEMA = ("name", "description", "schema", "strict")
FUNCTION = ("type", "name", "description", "parameters", "strict")
QUIET = tuple(QUIET_IN_MESSAGES)


class Turn(Protocol):
    """A message of a body."""

    content: str | list[dict[str, object]] | None
    tool_calls: list[dict[str, object]] | None

    @property
    def model_extra(self) -> dict[str, object] | None:
        """Its undeclared fields."""


def unused_messages(messages: Iterable[Turn]) -> Iterator[str]:
    """Of messages, their parts and their calls."""
    for message in messages:
        yield from unused_of("messages", message.model_extra or {}, quiet=QUIET)
        yield from unused_parts("messages.content", message.content)
        for call in message.tool_calls or ():
            yield from unused_of("messages.tool_calls", call, ("id", "type", "function", "index"), quiet=QUIET)
            yield from unused_of(
                "messages.tool_calls.function", call.get("function"), ("name", "arguments"), quiet=QUIET
            )


def unused_parts(where: str, content: object) -> Iterator[str]:
    """Of parts that are text."""
    for part in content if isinstance(content, list) else ():
        if isinstance(part, Mapping) and part.get("type") in TEXT_PARTS:
            yield from unused_of(where, part, ("type", "text", "refusal"), quiet=QUIET)


def unused_tools(tools: Iterable[Mapping[str, object]]) -> Iterator[str]:
    """Of functions, nested or flat."""
    for tool in tools:
        if "function" in tool:
            yield from unused_of("tools", tool, ("type", "function", "strict"), quiet=QUIET)
            yield from unused_of("tools.function", tool["function"], FUNCTION, quiet=QUIET)
        elif tool.get("type") == "function":
            yield from unused_of("tools", tool, FUNCTION, quiet=QUIET)


def unused_format(where: str, value: object) -> Iterator[str]:
    """Of a response format."""
    match value:
        case {"type": "json_schema", "json_schema": Mapping() as inner}:
            yield from unused_of(where, value, ("type", "json_schema"))
            yield from unused_of(f"{where}.json_schema", inner, SCHEMA)
        case {"type": "json_schema"}:
            yield from unused_of(where, value, ("type", *SCHEMA))
        case {"type": "json_object"}:
            yield from unused_of(where, value, ("type", "schema"))
        case _:
            yield from unused_of(where, value, ("type",))


def unused_choice(value: object) -> Iterator[str]:
    """Of a tool choice."""
    yield from unused_of("tool_choice", value, ("type", "function", "name", "allowed_tools", "mode", "tools"))
    if isinstance(value, Mapping):
        yield from unused_of("tool_choice.function", value.get("function"), ("name",))
        yield from unused_of("tool_choice.allowed_tools", value.get("allowed_tools"), ("mode", "tools"))
