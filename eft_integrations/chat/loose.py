"""An answer as a whole: whether it is calls of bound tools in whatever form, or text in which there is something like calls."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jsonschema import ValidationError, validators
from jsonschema.exceptions import SchemaError

from eft_integrations.chat.forms import (
    ARGUMENT_KEYS,
    FIRST_KEY,
    FUNCTION_TAG,
    NAME_KEYS,
    OPENING,
    OPENINGS,
    LooseCall,
    calls_of_value,
    closing_bracket,
    read_block,
    value_at,
)
from eft_integrations.chat.messages import Tool

NAMED = re.compile(r"""\s*\{\s*["']name["']\s*:\s*["'](?P<name>[^"'\\]*)["']""")


@dataclass(frozen=True)
class Unrecognised:
    """Text that looks like a call and stays text, and why."""

    text: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What an answer holds as a whole: calls with the text before and behind them, or text with what looked like a call."""

    calls: tuple[LooseCall, ...] = ()
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
    return Found()


def _line_starts(text: str) -> Iterator[int]:
    for line in re.finditer(r"^[ \t]*(?=[{\[<`f])", text, re.MULTILINE):
        yield line.end()


def _begins_a_line(text: str) -> bool:
    return re.match(r"[ \t]*(?:\n|$)", text) is not None


def _paragraphs(text: str) -> int:
    return len([part for part in re.split(r"\n\s*\n", text) if part.strip()])


def fault(call: LooseCall, tools: Sequence[Tool]) -> str | None:
    """Why a call cannot be carried out; None where it can."""
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        return f"no tool {call.name!r} is bound"
    try:
        _validator(json.dumps(dict(tool.parameters), sort_keys=True)).validate(json.loads(call.arguments))
    except ValidationError as error:
        return f"the arguments do not fit the schema: {error.message}"
    except SchemaError as error:
        return f"the schema of {call.name!r} is no JSON schema: {error.message}"
    return None


@functools.lru_cache(maxsize=256)
def _validator(schema: str) -> validators.Validator:
    loaded = json.loads(schema)
    own = validators.validator_for(loaded)
    own.check_schema(loaded)
    return own(loaded)


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
    place = 0
    while (opening := OPENING.match(stripped, place)) is not None:
        place = opening.end() + len(stripped[opening.end() :]) - len(stripped[opening.end() :].lstrip())
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
    end = closing_bracket(text, len(text) - len(text.lstrip()))
    return end is None or bool(calls_of_value(value_at(text.lstrip(), 0)[0]))


def _may_be_python(text: str, tools: Sequence[Tool]) -> bool:
    return any(text.startswith(f"{tool.name}(") or f"{tool.name}(".startswith(text) for tool in tools)
