"""Calls as models write them when they do not write their template's form: bare JSON, in a fence, in some tags, in a list."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eft_integrations.chat.json_text import is_hopeless, json_end

TAGS = (
    "tool_call",
    "tool_calls",
    "function_call",
    "function_calls",
    "tools",
    "tool",
    "function",
    "functions",
    "response",
    "json",
)
"""Tags in which calls have been seen."""
NAME_KEYS = ("name", "function", "function_name", "tool", "tool_name")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "tool_input", "action_input")
OPENINGS = (
    *(f"<{tag}>" for tag in TAGS),
    "```json",
    "```tool_call",
    "```tool_code",
    "```python",
    "```xml",
    "```",
    "[TOOL_CALLS]",
    "functools",
    "<|python_tag|>",
)
"""What may stand before the JSON of a call, at the beginning of a line."""
OPENING = re.compile("|".join(re.escape(opening) for opening in sorted(OPENINGS, key=len, reverse=True)), re.IGNORECASE)
CLOSING = re.compile(r"\s*(?:</(?:" + "|".join(TAGS) + r")>|```)", re.IGNORECASE)
SPACE = re.compile(r"\s*")
MAX_OPENINGS = 8
"""Fences and tags in a row that a call may stand in; a text of nothing else is looked through again and again while it comes."""
MAX_PYTHON = 4096
"""Characters of a value in Python's form: what is longer is not looked through again and again while it comes."""
FIRST_KEY = re.compile(r'\s*\{\s*(?:["\'](?P<key>\w*)(?P<closed>["\']?)|$)')
FUNCTION_TAG = re.compile(r"<function(?:=|\s+name=[\"'])(?P<name>[\w.\-]+)[\"']?>\s*(?=\{)")


@dataclass(frozen=True)
class WrittenCall:
    """A call as it was written. `arguments` is JSON text; of a call that is not over, the part that is certain."""

    name: str
    arguments: str


def calls_of_value(value: object) -> list[WrittenCall]:
    r"""The calls that a JSON value is: an object with a name and arguments, wrapped as OpenAI does or not, or a list of such.

    >>> calls_of_value({"type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}})
    [WrittenCall(name='f', arguments='{"a": 1}')]
    """
    match value:
        case list():
            found = [calls_of_value(item) for item in value]
            return [call for own in found for call in own] if all(found) else []
        case {"function": dict() as inner}:
            return calls_of_value(inner)
        case {"tool_calls": list() as inner} | {"function_call": dict() as inner}:
            return calls_of_value(inner)
        case dict():
            name = next((value[key] for key in NAME_KEYS if isinstance(value.get(key), str)), None)
            arguments = next((value[key] for key in ARGUMENT_KEYS if key in value), None)
            if name is None or (arguments is None and not _is_only_a_name(value)):
                return []
            return _call(name, arguments)
    return []


def _is_only_a_name(value: Mapping[str, object]) -> bool:
    return set(value) <= {*NAME_KEYS, *ARGUMENT_KEYS, "type", "id"}


def _call(name: str, arguments: object) -> list[WrittenCall]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, strict=False) if arguments.strip() else {}
        except ValueError:
            return []
    if arguments is None:
        arguments = {}
    return [WrittenCall(name, json.dumps(arguments, ensure_ascii=False))] if isinstance(arguments, dict) else []


# ---- one block -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """The values that stand at the beginning of a text, with their wrappings, and where the text goes on."""

    calls: tuple[WrittenCall, ...]
    end: int


def read_block(text: str, names: Sequence[str] = ()) -> Block | None:
    """The block at the beginning of a text; None where there is none, or not all of it yet."""
    calls: list[WrittenCall] = []
    place = end = 0
    while (one := _read_one(text, place, names)) is not None:
        calls += one.calls
        end = one.end
        between = re.compile(r"\s*[;,]?\s*").match(text, end)
        place = between.end() if between else end
        if place >= len(text):
            break
    return Block(tuple(calls), end) if calls else None


def behind_openings(text: str, start: int) -> tuple[int, int]:
    """Where the openings that stand at a place end, with whitespace behind them, and how many they are: `MAX_OPENINGS` at most."""
    place, num_open = start, 0
    while num_open < MAX_OPENINGS and (opening := OPENING.match(text, place)) is not None:
        num_open += 1
        space = SPACE.match(text, opening.end())
        place = opening.end() if space is None else space.end()
    return place, num_open


def _read_one(text: str, start: int, names: Sequence[str]) -> Block | None:
    place, num_open = behind_openings(text, start)
    if (tag := FUNCTION_TAG.match(text, place)) is not None:
        value, end = value_at(text, tag.end(), names)
        calls = _call(tag["name"], value) if isinstance(value, dict) else []
        end = re.compile(r"\s*(?:</function>)?").match(text, end).end()  # type: ignore[union-attr]
    else:
        value, end = value_at(text, place, names)
        calls = calls_of_value(value)
    if not calls:
        return None
    for _ in range(num_open):  # further ones open the next block
        closing = CLOSING.match(text, end)
        end = closing.end() if closing else end
    return Block(tuple(calls), end)


def value_at(text: str, start: int, names: Sequence[str] = ()) -> tuple[object, int]:
    """The JSON value (or Python's form of one, or a list of Python calls) at `start`, and its end; None where there is none yet."""
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, start)
    except (ValueError, RecursionError):
        end = closing_bracket(text, start) if is_hopeless(text, start) else None
    if end is None:
        return None, start
    try:
        return ast.literal_eval(text[start:end]), end
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    calls = python_calls(text[start:end], names)
    if calls is None:
        return None, start
    return [{"name": call.name, "arguments": call.arguments} for call in calls], end


def is_open(text: str) -> bool:
    """Whether the JSON value, or Python's form of one, that a text begins with may still become whole."""
    if json_end(text, 0) is not None:
        return False
    return not is_hopeless(text, 0) or (closing_bracket(text, 0) is None and len(text) < MAX_PYTHON)


def closing_bracket(text: str, start: int, *, longest: int | None = MAX_PYTHON) -> int | None:
    """Where a value that begins with a bracket ends, quotes regarded; None while it is open, or longer than is looked at."""
    if text[start : start + 1] not in ("{", "[", "("):
        return None
    depth, quote, escaped = 0, "", False
    for place in range(start, len(text) if longest is None else min(len(text), start + longest)):
        char = text[place]
        if quote:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        elif char in "{[(":
            depth += 1
        elif char in "}])":
            depth -= 1
            if depth == 0:
                return place + 1
    return None


def python_calls(text: str, names: Sequence[str] = ()) -> list[WrittenCall] | None:
    """The calls of a text like `[f(a=1), g(b="x")]`; None where it is something else.

    Args:
        text: the text.
        names: names that calls may have; those that are no names in Python are found by them.

    >>> python_calls("[f(a=1, b=true)]")
    [WrittenCall(name='f', arguments='{"a": 1, "b": true}')]
    """
    stand_ins = {f"_{index}_": name for index, name in enumerate(names) if not name.isidentifier()}
    for stand_in, name in stand_ins.items():
        text = text.replace(f"{name}(", f"{stand_in}(")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    nodes = tree.elts if isinstance(tree, ast.List) else [tree]
    calls = []
    for node in nodes:
        if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
            return None
        try:
            arguments = {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
        except ValueError:
            return None
        name = ast.unparse(node.func)
        calls.append(WrittenCall(stand_ins.get(name, name), json.dumps(arguments, ensure_ascii=False)))
    return calls or None


def _literal(node: ast.expr) -> object:
    """The value of a Python or JSON literal."""
    match node:
        case ast.Name(id=name) if name in ("true", "false", "null"):
            return {"true": True, "false": False, "null": None}[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {
                str(_literal(key)): _literal(value) for key, value in zip(keys, values, strict=True) if key is not None
            }
    value: object = ast.literal_eval(node)
    if isinstance(value, (bytes, complex, set)):
        raise ValueError(f"{value!r} is no JSON")
    return value
