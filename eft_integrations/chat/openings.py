"""What only calls begin with: texts that tell a call from words while it is written, and what keeps words free of them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from eft_integrations.chat.forms import NAME_KEYS
from eft_integrations.chat.messages import Tool
from eft_integrations.chat.notations.base import Notation
from eft_integrations.chat.thoughts import in_regex

SHARED = (
    "<tool_call>", "<tool_calls>", "<function_call>", "<function_calls>", "<tools>", "<function=", "<function name=",
    "[TOOL_CALLS]", "functools[", "<|python_tag|>",
)  # fmt: skip
"""Marks in front of calls that models share. Fences, and tags that hold other things too, say nothing."""
SPACE = r"[ \t\r\n]*"
COLONS = (": ", ":", " : ")


def call_openings(tools: Sequence[Tool], notation: Notation, *, lenient: bool) -> tuple[str, ...]:
    """Texts that an answer holds only if it calls one of the tools.

    Args:
        tools: what may be called.
        notation: how the model writes calls.
        lenient: calls count in the forms that models share, too.
    """
    found = list(notation.opening_texts(tools))
    if lenient:
        found += SHARED
        found += [text for tool in tools for text in (*json_openings(tool), f"[{tool.name}(")]
    return tuple(dict.fromkeys(found))


def json_openings(tool: Tool, keys: Sequence[str] = NAME_KEYS) -> list[str]:
    """The name of a tool where an object of JSON, or of Python, has it.

    >>> json_openings(Tool("f"), ["name"])
    ['"name": "f"', '"name":"f"', '"name" : "f"', "'name': 'f'"]
    """
    name = json.dumps(tool.name, ensure_ascii=False)
    found = []
    for key in keys:
        found += [*(f'"{key}"{colon}{name}' for colon in COLONS), f"'{key}': '{tool.name}'"]
    return found


def call_pattern(tools: Sequence[Tool], notation: Notation, *, lenient: bool) -> str:
    """A regular expression of all that `call_openings` finds, with any whitespace inside, and of objects that begin like a call; as
    it stands in a Lark grammar.

    Common beginnings are written once: what excludes a text is followed through every token of a vocabulary.
    """
    marks = [text for text in (*notation.opening_texts(tools), *(SHARED if lenient else ())) if text[0] not in "\"'"]
    marks = [text for text in marks if not text.endswith("(")]
    patterns = [factored(marks)] if marks else []
    if lenient or notation.is_bare:
        names = factored([tool.name for tool in tools])
        # An object that begins like a call is none of words either: a model that wants to call would misspell the name.
        patterns.append(rf"\{{{SPACE}[\"']{factored(NAME_KEYS)}[\"']{SPACE}:")
        patterns.append(rf"[\"']{factored(NAME_KEYS)}[\"']{SPACE}:{SPACE}[\"']{names}[\"']")
        patterns.append(rf"\[{SPACE}{names}\(")
    return "|".join(patterns)


def factored(texts: Sequence[str]) -> str:
    """A regular expression of one of these texts, with common beginnings written once.

    >>> factored(["tool", "tools", "name"])
    '(tool(|s)|name)'
    """
    by_first: dict[str, list[str]] = {}
    for text in dict.fromkeys(texts):
        by_first.setdefault(text[:1], []).append(text)
    found = []
    for own in by_first.values():
        shared = own[0]
        while not all(text.startswith(shared) for text in own):
            shared = shared[:-1]
        rest = [text[len(shared) :] for text in own]
        found.append(in_regex(shared) + ("" if rest == [""] else factored(rest)))
    return f"({'|'.join(found)})"
