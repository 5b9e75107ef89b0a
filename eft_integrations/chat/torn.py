"""Calls that a cut has gone through: what is known of them, and which calls in front of them are whole."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from eft_integrations.chat.forms import (
    ARGUMENT_KEYS,
    CLOSING,
    FUNCTION_TAG,
    NAME_KEYS,
    OPENING,
    OPENINGS,
    TAGS,
    WrittenCall,
    calls_of_value,
    closing_bracket,
    python_calls,
    value_at,
)
from eft_integrations.chat.json_text import json_end

NAME = re.compile(rf"""["'](?:{"|".join(NAME_KEYS)})["']\s*:\s*(?P<name>"(?:[^"\\]|\\.)*"|'[^'\\]*')""")
ARGUMENTS = re.compile(rf"""["'](?:{"|".join(ARGUMENT_KEYS)})["']\s*:\s*""")
PYTHON_NAME = re.compile(r"(?P<name>[\w.\-]+)\(")
TAGGED_NAME = re.compile(r"<function(?:=|\s+name=[\"'])(?P<name>[\w.\-]+)[\"']?>\s*")
BETWEEN = re.compile(rf"(?:[\s\[\],;]|{OPENING.pattern}|{CLOSING.pattern})*", re.IGNORECASE)
"""What may stand in front of a call, between two, or behind the last: brackets of a list, fences and tags."""
MARKS = tuple(own.lower() for own in (*OPENINGS, *(f"</{tag}>" for tag in TAGS)) if own[0] in "<`[")
"""Of a mark behind a call a cut may leave the beginning, which says nothing."""
LONGEST_ESCAPE = len("\\U00012345")
PYTHON = re.compile(
    r"""(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<open>['"].*)|(?P<word>\w[\w.]*)|\s+|(?P<sign>.)""",
    re.DOTALL,
)
WORDS = {"True": "true", "False": "false", "None": "null"}
SIGNS = {"(": "[", ")": "]", ",": ", ", ":": ": "}


@dataclass(frozen=True)
class Torn:
    """What a text is that begins like calls and was cut: calls that are whole, and of the one that is not its text and what is
    known of it. The text is empty where the cut went between calls or through what closes them.
    """

    calls: tuple[WrittenCall, ...]
    text: str = ""
    begun: WrittenCall | None = None


def torn_calls(text: str, names: Sequence[str]) -> Torn | None:
    """What a cut text is that begins like calls of tools with these names; None where no such call has begun.

    >>> torn_calls('[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"a": 2', ["f"])
    Torn(calls=(WrittenCall(name='f', arguments='{}'),), text='{"name": "f", "arguments": {"a": 2', begun=WrittenCall(name='f', \
arguments='{"a": 2'))
    """
    calls: list[WrittenCall] = []
    end = 0
    while True:
        place = _behind(text, end)
        found, behind = _call_at(text, place, names)
        if not found:
            break
        if any(call.name not in names for call in found):
            return None
        calls, end = [*calls, *found], behind
    rest, line = text[place:], text[end:].rpartition("\n")[2].strip().lower()
    if not rest or (line and any(own.startswith(line) for own in MARKS)):
        return Torn(tuple(calls)) if calls else None
    begun = torn_call(rest, names)
    begins = rest[0] in "{<`" or any(name.startswith(rest) for name in names)
    return Torn(tuple(calls), rest, begun) if begun is not None or (calls and begins) else None


def _behind(text: str, place: int) -> int:
    found = BETWEEN.match(text, place)
    assert found is not None, "it may be empty"
    return found.end()


def _call_at(text: str, place: int, names: Sequence[str]) -> tuple[Sequence[WrittenCall], int]:
    """The calls that stand whole at a place, and where the text goes on."""
    if (tag := FUNCTION_TAG.match(text, place)) is not None:
        value, end = value_at(text, tag.end())
        return calls_of_value({"name": tag["name"], "arguments": value}) if isinstance(value, dict) else [], end
    if (named := PYTHON_NAME.match(text, place)) is not None:
        closed = closing_bracket(text, named.end() - 1, longest=None)
        return (python_calls(text[place:closed], names) or [], closed) if closed is not None else ([], place)
    value, end = value_at(text, place)
    return calls_of_value(value), end


def torn_call(text: str, names: Sequence[str]) -> WrittenCall | None:
    r"""What is known of a call that was cut: its name and the beginning of its arguments. None where it names none of the tools.

    >>> torn_call('{"name": "f", "arguments": "{\\"a\\": 2', ["f"])
    WrittenCall(name='f', arguments='{"a": 2')
    """
    if (tag := TAGGED_NAME.match(text)) is not None:
        call = WrittenCall(tag["name"], text[tag.end() :])
    elif (python := PYTHON_NAME.match(text)) is not None:
        call = WrittenCall(python["name"], arguments_so_far(text[python.end() :]))
    elif (named := NAME.search(text)) is not None:
        given = ARGUMENTS.search(text)
        call = WrittenCall(str(_string(named["name"])), "" if given is None else _value_so_far(text[given.end() :]))
    else:
        return None
    return call if call.name in names else None


def _value_so_far(text: str) -> str:
    """The value at the beginning of a text as it is written; where it is a text of JSON, that."""
    written = text[: json_end(text, 0)]
    return _string(written) if written.startswith(('"', "'")) else written


def _string(written: str) -> str:
    r"""The value of a string in quotes, which may have no end.

    >>> _string("'a"), _string('"a\\u00e'), _string('"ab"')
    ('a', 'a', 'ab')
    """
    for end in range(len(written), max(len(written) - LONGEST_ESCAPE, 0), -1):
        for closing in ("", written[0]):
            if (value := _literal(written[:end] + closing)) is not None:
                return value.encode(errors="ignore").decode()  # half of a surrogate pair is no character
    return ""


def _literal(text: str) -> str | None:
    """The value of a string, in JSON or as Python has it; None where it is none."""
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        pass
    try:
        return str(ast.literal_eval(text.replace("\n", "\\n")))
    except (ValueError, SyntaxError):
        return None


def arguments_so_far(text: str) -> str:
    """The JSON that the keywords of a Python call come to, as far as they are written.

    >>> arguments_so_far("city='Par"), arguments_so_far('days=2, deep=[True, No')
    ('{"city": "Par', '{"days": 2, "deep": [true, nu')
    """
    written, depth, is_key = "{", 0, True
    for token in PYTHON.finditer(text):
        if (string := token["string"] or token["open"]) is not None:
            quoted = json.dumps(_string(string), ensure_ascii=False)
            written += quoted if token["string"] else quoted[:-1]
        elif (word := token["word"]) is not None:
            whole = next((own for own in WORDS if own.startswith(word)), None)
            written += f'"{word}' if is_key else word if whole is None else WORDS[whole][: len(word)]
        elif (sign := token["sign"]) is not None:
            depth += (sign in "([{") - (sign in ")]}")
            written += '": ' if is_key and sign == "=" else SIGNS.get(sign, sign)
            is_key = depth == 0 and sign == ","
    return written
