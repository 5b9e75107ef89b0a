"""Tool calls in text: how they are announced to a model, which grammar holds them to the schema, and how they are read back.

Models write calls in a few notations. The one of a model is told by its chat template; a template that knows no tools gets
Hermes' notation and a block of our own in the system turn.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eft_integrations.chat.messages import InvalidToolCall, Message, Tool, ToolCall
from eft_integrations.chat.request import CallDelta, ToolChoice
from eft_integrations.chat.schema import close_schema

COMPACT: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Whitespace as most models write it; flexible whitespace lets a small model write it without end."""


@dataclass(frozen=True)
class ToolNotation:
    """How a call is written: `opening {"name": ..., "<arguments_key>": {...}} closing`; `is_list`: the calls are one JSON list."""

    name: str
    opening: str
    closing: str
    arguments_key: str = "arguments"
    is_list: bool = False


HERMES = ToolNotation("hermes", "<tool_call>\n", "\n</tool_call>")
LLAMA3 = ToolNotation("llama3", "", "", arguments_key="parameters")
MISTRAL = ToolNotation("mistral", "[TOOL_CALLS]", "", is_list=True)


def notation_of(chat_template: str | None) -> ToolNotation:
    """The notation that a chat template shows the model."""
    template = chat_template or ""
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    if "tool_call>" not in template and '"parameters"' in template and "tools" in template:
        return LLAMA3
    return HERMES


def knows_tools(chat_template: str | None) -> bool:
    """Whether a chat template renders tools itself."""
    return re.search(r"\btools\b", chat_template or "") is not None


# ---- announcing ----------------------------------------------------------------------------------------------------------


def announce(messages: Sequence[Message], tools: Sequence[Tool], notation: ToolNotation) -> list[Message]:
    """For templates that know no tools: the tools in the system turn, earlier calls and results as text."""
    rendered = [_as_text(message, notation) for message in messages]
    if tools:
        block = _tool_block(tools, notation)
        if rendered and rendered[0].role == "system":
            rendered[0] = replace(rendered[0], content=f"{rendered[0].content}\n\n{block}")
        else:
            rendered.insert(0, Message("system", block))
    return rendered


def _tool_block(tools: Sequence[Tool], notation: ToolNotation) -> str:
    listed = "\n".join(json.dumps(tool.as_openai(), ensure_ascii=False) for tool in tools)
    example = f'{notation.opening}{{"name": <name>, "{notation.arguments_key}": <arguments>}}{notation.closing}'
    return (
        f"You may call these functions:\n<tools>\n{listed}\n</tools>\n"
        f"To call one, write its name and its arguments as JSON:\n{example}"
    )


def _as_text(message: Message, notation: ToolNotation) -> Message:
    if message.role == "tool":
        return Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
    if not message.tool_calls:
        return message
    calls = [
        f'{notation.opening}{{"name": {json.dumps(call.name, ensure_ascii=False)}, '
        f'"{notation.arguments_key}": {call.arguments}}}{notation.closing}'
        for call in message.tool_calls
    ]
    return Message(message.role, "\n".join([*([message.content] if message.content else []), *calls]))


# ---- grammar -------------------------------------------------------------------------------------------------------------


def call_grammar(
    tools: Sequence[Tool],
    choice: ToolChoice,
    notation: ToolNotation,
    added_tokens: set[str],
    *,
    response_schema: Mapping[str, Any] | None = None,
) -> str | None:
    """A Lark grammar that holds calls to the tools' schemas; None where text is free.

    Args:
        tools: what may be called.
        choice: whether a call must come, and which.
        notation: how calls are written.
        added_tokens: texts that the tokenizer writes as one token of their own; grammars name those without quotes.
        response_schema: where no call must come, the answer is a JSON value of this schema instead of free text.
    """
    chosen = [tool for tool in tools if choice.name in (None, tool.name)]
    if choice.mode == "none" or not chosen:
        return None
    objects = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.name},
                notation.arguments_key: close_schema({"type": "object", "properties": {}, **tool.parameters}),
            },
            "required": ["name", notation.arguments_key],
            "additionalProperties": False,
        }
        for tool in chosen
    ]
    one: dict[str, Any] = objects[0] if len(objects) == 1 else {"anyOf": objects}
    if notation.is_list:
        one = {"type": "array", "items": one, "minItems": 1, **({} if choice.parallel else {"maxItems": 1})}
    schema = json.dumps({**one, "x-guidance": COMPACT}, ensure_ascii=False)
    parts = [*_literal(notation.opening, added_tokens), "obj", *_literal(notation.closing, added_tokens)]
    call = f"call: {' '.join(parts)}\nobj: %json {schema}"
    several = choice.parallel and not notation.is_list and bool(notation.closing)
    if choice.mode != "auto":
        return f"start: {_calls(several=several)}\n{call}"
    if response_schema is not None:
        answer = json.dumps({**close_schema(response_schema), "x-guidance": COMPACT}, ensure_ascii=False)
        return f"start: {_calls(several=several)} | answer\n{call}\nanswer: %json {answer}"
    if not notation.opening:  # a call is the whole text then
        return f"start: call | TEXT\nTEXT: /([^{{](.|\\n)*)?/\n{call}"
    return _auto_grammar(call, notation, added_tokens, several=several)


def _calls(*, several: bool) -> str:
    return 'call ("\\n" call)*' if several else "call"


def _auto_grammar(call: str, notation: ToolNotation, added_tokens: set[str], *, several: bool) -> str:
    """Free text, then perhaps calls: from the marker on everything is constrained."""
    marker = notation.opening.strip()
    calls = _calls(several=several)
    if marker in added_tokens:
        return f"start: TEXT ({calls})?\nTEXT: /(.|\\n)*/\n{call}"
    rest = [
        *_literal(notation.opening.removeprefix(marker), added_tokens),
        "obj",
        *_literal(notation.closing, added_tokens),
    ]
    schema = call[call.index("obj: ") :]
    more = f' ("\\n" {json.dumps(marker)} {" ".join(rest)})*' if several else ""
    return (
        "%llguidance {}\n"
        f"start: TEXT | before {' '.join(rest)}{more}\n"
        f"before[lazy]: /(.|\\n)*{re.escape(marker)}/\n"
        f"TEXT: /(.|\\n)*/ & ~/(.|\\n)*{re.escape(marker)}(.|\\n)*/\n"
        f"{schema}"
    )


def _literal(text: str, added_tokens: set[str]) -> list[str]:
    """Lark terms of a text in which added tokens are referred to, not quoted."""
    known = [token for token in sorted(added_tokens, key=len, reverse=True) if token in text]
    if not text:
        return []
    if not known:
        return [json.dumps(text, ensure_ascii=False)]
    before, _, after = text.partition(known[0])
    return [*_literal(before, added_tokens), known[0], *_literal(after, added_tokens)]


# ---- reading -------------------------------------------------------------------------------------------------------------


Piece = str | CallDelta | ToolCall | InvalidToolCall
"""Text, a piece of a call, a call that is complete, or what turned out to be none."""


class ToolCallReader:
    """Reads a stream of text: what is not a call is passed on, calls become pieces as soon as their name is known.

    A text that could be the beginning of a call's marker is held back until that is decided.
    """

    def __init__(self, notation: ToolNotation) -> None:
        self._notation = notation
        self._marker = notation.opening.strip()
        self._closing = notation.closing.strip()
        self._held = ""
        self._seen_text = False
        self._num_calls = 0
        self._call: _CallText | None = None
        self._in_list = False

    def feed(self, text: str) -> Iterator[Piece]:
        """Take a piece of the model's text."""
        self._held += text
        while True:
            if self._call is None:
                yield from self._pass_text()
                if self._call is None:
                    return
            text, self._held = self._held, ""
            yield from self._call.feed(text)
            if not self._call.is_over:
                return
            self._held, self._call = self._call.rest, None

    def finish(self) -> Iterator[Piece]:
        """The text is over; a call that is still open is invalid."""
        if self._call is not None:
            yield from self._call.finish()
            self._call = None
        elif self._marker and self._held.startswith(self._marker):
            yield InvalidToolCall(self._held, "the text ended at the beginning of a call")
        elif self._held.strip() and not self._in_list:
            yield self._held
        self._held = ""

    def _pass_text(self) -> Iterator[Piece]:
        """Emit what certainly is text; open a call when its beginning is there."""
        start, body = self._find_call()
        if start > 0 and not self._in_list:
            text = self._held[:start]
            self._seen_text = self._seen_text or bool(text.strip())
            if text.strip() or not self._num_calls:  # blank lines between calls are not text
                yield text
        if body is None:
            self._held = self._held[start:]
            return
        self._held = self._held[body:]
        self._call = _CallText(self._num_calls, self._closing)
        self._num_calls += 1

    def _find_call(self) -> tuple[int, int | None]:
        """Where text ends, and where the JSON of a call begins (None: not yet, or never)."""
        held = self._held
        if self._in_list:
            brace = held.find("{")
            return (brace, brace) if brace >= 0 else (len(held), None)
        if not self._marker:
            stripped = held.lstrip()
            if stripped.startswith("{") and not self._seen_text:
                start = len(held) - len(stripped)
                return start, start
            return (len(held), None) if stripped or self._seen_text else (0, None)
        start = held.find(self._marker)
        if start < 0:
            return len(held) - _overlap(held, self._marker), None
        brace = held.find("{", start)
        if brace < 0:
            return start, None
        self._in_list = self._notation.is_list
        return start, brace


def _overlap(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`.

    >>> _overlap("see <tool", "<tool_call>"), _overlap("see", "<tool_call>")
    (5, 0)
    """
    return next(length for length in range(min(len(text), len(marker) - 1), -1, -1) if text.endswith(marker[:length]))


HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class _CallText:
    """The JSON of one call while it arrives."""

    def __init__(self, index: int, closing: str) -> None:
        self._index = index
        self._closing = closing
        self._text = ""
        self._call_id = f"call_{uuid.uuid4().hex[:24]}"
        self._name: str | None = None
        self._sent = self._arguments_start = 0
        self._tail_start: int | None = None
        self.is_over = False
        self.rest = ""

    def feed(self, text: str) -> Iterator[Piece]:
        """Pieces that became certain."""
        self._text += text
        if self._name is None:
            head = HEAD.match(self._text)
            if head is None:
                yield from self._read_unusual()
                return
            self._name = json.loads(head[1], strict=False)
            self._sent = self._arguments_start = head.end()
            yield CallDelta(self._index, self._call_id, self._name)
        if self._tail_start is not None:
            self._read_tail(self._tail_start)
            return
        end = self._end_of_arguments()
        piece = self._text[self._sent : end]
        self._sent += len(piece)
        if piece:
            yield CallDelta(self._index, arguments=piece)
        if end is not None:
            yield ToolCall(self._call_id, self._name, self._text[self._arguments_start : end])
            self._tail_start = end
            self._read_tail(end)

    def finish(self) -> Iterator[Piece]:
        """No more text comes."""
        if self._tail_start is None:
            yield from self._read_whole(self._text) or [InvalidToolCall(self._text, "the text ended inside the call")]

    def _end_of_arguments(self) -> int | None:
        try:
            return json.JSONDecoder(strict=False).raw_decode(self._text, self._arguments_start)[1]
        except ValueError:
            return None

    def _read_unusual(self) -> Iterator[Piece]:
        """Keys in another order, or no arguments: read in one piece, once it is all there."""
        end = self._text.find(self._closing) if self._closing else -1
        if end >= 0:
            body = self._text[:end]
            yield from self._read_whole(body) or [InvalidToolCall(body, "not a call: a name and arguments as JSON")]
            self.is_over, self.rest = True, self._text[end + len(self._closing) :]

    def _read_whole(self, body: str) -> list[Piece]:
        try:
            call = json.loads(body, strict=False)
        except ValueError:
            return []
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return []
        arguments = call.get("arguments", call.get("parameters", {}))
        if not isinstance(arguments, dict):
            return []
        text = json.dumps(arguments, ensure_ascii=False)
        delta = CallDelta(self._index, self._call_id, call["name"], text)
        return [delta, ToolCall(self._call_id, call["name"], text)]

    def _read_tail(self, start: int) -> None:
        """Skip the object's brace and the closing marker; over when they are there, or when something else came."""
        tail = self._text[start:]
        for expected in ("}", self._closing):
            tail = tail.lstrip()
            if tail.startswith(expected):
                tail = tail.removeprefix(expected)
            elif expected.startswith(tail):
                return  # more must come
            else:
                break
        self.is_over, self.rest = True, tail
