"""An answer as a whole: whether it is calls of bound tools in whatever form, or text in which there is something like calls."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eft_integrations.chat.forms import (
    ARGUMENT_KEYS,
    FIRST_KEY,
    FUNCTION_TAG,
    NAME_KEYS,
    OPENINGS,
    WrittenCall,
    behind_openings,
    calls_of_value,
    is_open,
    read_block,
    value_at,
)
from eft_integrations.chat.messages import Tool
from eft_integrations.chat.schema_check import fault_of

MAX_PLACES = 32
"""Lines of an answer that are looked at: a list of thousands of them is no call."""
NAMED = re.compile(r"""\s*\{\s*["']name["']\s*:\s*["'](?P<name>[^"'\\]*)["']""")


@dataclass(frozen=True)
class Unrecognised:
    """Text that looks like a call and stays text, and why."""

    text: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What an answer holds as a whole: calls with the text before and behind them, or text with what looked like a call."""

    calls: tuple[WrittenCall, ...] = ()
    before: str = ""
    behind: str = ""
    unrecognised: tuple[Unrecognised, ...] = ()


def find_calls(text: str, tools: Sequence[Tool]) -> Found:
    """The calls that an answer is, checked against the tools that are bound.

    A block counts that begins with a line, with at most one paragraph before it or one behind it, not both: JSON inside of an
    explanation is none.
    """
    for start in _line_starts(text):
        block = read_block(text[start:], [tool.name for tool in tools])
        if block is None:
            continue
        before, behind = text[:start].rstrip(), text[start + block.end :]
        seen = text[start : start + block.end]
        reason = next((reason for call in block.calls if (reason := fault(call, tools)) is not None), None)
        if reason is None and behind.strip() and not _begins_a_line(behind):
            reason = "it stands inside a line"
        if reason is None and (before.strip() and behind.strip()):
            reason = "there is text before and behind it"
        if reason is None and (_paragraphs(before) > 1 or _paragraphs(behind) > 1):
            reason = "it stands inside an explanation"
        if reason is not None:
            return Found(unrecognised=(Unrecognised(seen.strip(), reason),))
        return Found(block.calls, before, behind.strip())
    return Found(unrecognised=tuple(_inside_lines(text, tools)))


def _inside_lines(text: str, tools: Sequence[Tool]) -> Iterator[Unrecognised]:
    """JSON that would be a call of one of the tools, if it did not stand inside a line."""
    for found in itertools.islice(re.finditer(r'\{\s*"name"', text), MAX_PLACES):
        value, end = value_at(text, found.start())
        calls = calls_of_value(value)
        if calls and all(call.name in [tool.name for tool in tools] for call in calls):
            yield Unrecognised(text[found.start() : end], "it stands inside a line")


def _line_starts(text: str) -> Iterator[int]:
    lines = re.finditer(r"^[ \t]*(?=[{\[<`f])", text, re.MULTILINE)
    for line in itertools.islice(lines, MAX_PLACES):
        yield line.end()


def _begins_a_line(text: str) -> bool:
    return re.match(r"[ \t]*(?:\n|$)", text) is not None


def _paragraphs(text: str) -> int:
    return len([part for part in re.split(r"\n\s*\n", text) if part.strip()])


def fault(call: WrittenCall, tools: Sequence[Tool]) -> str | None:
    """Why a call cannot be carried out; None where it can."""
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        return f"no tool {call.name!r} is bound"
    arguments = json.loads(call.arguments, strict=False)
    if not isinstance(arguments, dict):
        return f"the arguments are no object: {call.arguments[:100]}"
    reason = fault_of(arguments, tool.parameters)
    return None if reason is None else f"the arguments do not fit the schema: {reason}"


def may_become_calls(text: str, tools: Sequence[Tool]) -> bool:
    """Whether a text that is not over, and begins with a line, may still become calls with at most a paragraph behind them."""
    stripped = text.lstrip()
    if not stripped or any(
        opening.lower().startswith(stripped.lower()) for opening in (*OPENINGS, "<function=", "<function name=")
    ):
        return True
    block = read_block(stripped, [tool.name for tool in tools])
    if block is not None:
        behind = stripped[block.end :]
        return all(fault(call, tools) is None for call in block.calls) and _paragraphs(behind) <= 1
    place, _ = behind_openings(stripped, 0)
    rest = stripped[place:]
    if not rest or FUNCTION_TAG.match(rest) or any(f"<function={tool.name}>".startswith(rest) for tool in tools):
        return True
    if rest[0] == "[":
        inner = rest[1:].lstrip()
        return not inner or _may_be_object(inner, tools) or _may_be_python(inner, tools)
    return _may_be_object(rest, tools)


def _may_be_object(text: str, tools: Sequence[Tool]) -> bool:
    first = FIRST_KEY.match(text)
    if first is None:
        return False
    key, closed = first["key"] or "", bool(first["closed"])
    known = (*NAME_KEYS, *ARGUMENT_KEYS, "type", "id", "tool_calls", "function_call")
    if not (key in known if closed else any(own.startswith(key) for own in known)):
        return False
    named = NAMED.match(text)
    if named is not None and named["name"] not in [tool.name for tool in tools]:
        return False
    return is_open(text) or bool(calls_of_value(value_at(text, 0)[0]))


def _may_be_python(text: str, tools: Sequence[Tool]) -> bool:
    return any(text.startswith(f"{tool.name}(") or f"{tool.name}(".startswith(text) for tool in tools)
