"""Calls whose name stands between markers, in front of arguments in JSON: Mistral since v11, DeepSeek, Kimi."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from eft_integrations.chat.forms import WrittenCall
from eft_integrations.chat.json_text import json_end
from eft_integrations.chat.lark import Rules, sequence
from eft_integrations.chat.messages import Tool, ToolCall
from eft_integrations.chat.notations.base import (
    NAME,
    BrokenCall,
    Notation,
    Zone,
    may_begin,
    skip,
    tolerant,
)


@dataclass(frozen=True)
class NamedCalls(Notation):
    """`before_all` (`before` name `middle` {...} `after`) `between` ... `after_all`.

    `head` and `neck` are regular expressions of what models write in front of a call's name and between that and its arguments,
    where it varies.
    """

    name: str
    before: str
    middle: str
    after: str = ""
    before_all: str = ""
    after_all: str = ""
    between: str = ""
    head: str = ""
    neck: str = ""
    id_marker: str = ""
    """Behind the name may stand this marker and an id of nine letters and digits."""

    @property
    def markers(self) -> tuple[str, ...]:  # type: ignore[override]
        """What opens all calls, or one."""
        first = re.match(r"<[^<>]*>|\[[^\[\]]*\]", self.before)
        assert first is not None, "a call begins with a marker in brackets"
        return tuple(marker for marker in (self.before_all, first[0]) if marker)

    def write(self, calls: Sequence[ToolCall]) -> str:
        """See `Notation`."""
        written = [
            f"{self.before}{call.name}{self._middle(index)}{call.arguments}{self.after}"
            for index, call in enumerate(calls)
        ]
        return f"{self.before_all}{self.between.join(written)}{self.after_all}"

    def _middle(self, index: int) -> str:
        return self.middle.replace("{index}", str(index))

    def rule(self, tools: Sequence[Tool], rules: Rules, *, several: bool, behind: str = "") -> str:
        """See `Notation`."""
        literal = rules.literal
        middle = " /[0-9]/ ".join(literal(part) for part in self.middle.split("{index}"))
        if self.id_marker:
            middle = f"({literal(self.id_marker)} /[a-zA-Z0-9]{{9}}/)? {middle}"
        for index, tool in enumerate(tools):
            arguments = rules.arguments(tools, tool)
            rules.add(f"named_{index}", sequence(literal(tool.name), middle, arguments, literal(self.after)))
        call = rules.add("named", " | ".join(f"named_{index}" for index in range(len(tools))))
        opening = literal(f"{self.before_all}{self.before}".removeprefix(behind))
        more = f"({sequence(literal(f'{self.between}{self.before}'), call)})*" if several else ""
        return sequence(opening, call, more, literal(self.after_all))

    def read(self, text: str, tools: Sequence[Tool], *, is_over: bool) -> Zone:
        """See `Notation`."""
        calls: list[WrittenCall | BrokenCall] = []
        place = skip(text, 0, self.before_all)
        named = rf"\s*{self.head or tolerant(self.before)}(?P<name>{NAME})"
        head = re.compile(rf"{named}\s*{self.neck or self._tolerant_middle()}")
        while (found := head.match(text, place)) is not None and text[found.end() : found.end() + 1] == "{":
            end = json_end(text, found.end())
            if end is None:
                begun = WrittenCall(found["name"], text[found.end() :])
                if is_over:
                    calls.append(BrokenCall(text[place:], "the text ended inside the call", begun))
                    return Zone(tuple(calls), end=len(text))
                return Zone(tuple(calls), begun)
            arguments = text[found.end() : end]
            assert isinstance(json.loads(arguments, strict=False), dict), "it begins with a brace"
            calls.append(WrittenCall(found["name"], arguments))
            place = skip(text, end, self.after)
            if not is_over and self.after.strip() and place == end and may_begin(text[end:], self.after):
                return Zone(tuple(calls))
        rest = text[place:]
        if self.after_all and (closed := skip(text, place, self.after_all)) > place:
            return Zone(tuple(calls), end=closed)
        opens = any(rest.lstrip().startswith(marker) or may_begin(rest, marker) for marker in self.markers)
        if not is_over and (opens or not rest.strip() or (self.after_all and may_begin(rest, self.after_all))):
            return Zone(tuple(calls))
        if opens and rest.strip() and is_over:
            known = re.compile(rf"{named}(?=[^\w.\-])").match(text, place)
            name_only = None if known is None else WrittenCall(known["name"], "")
            calls.append(BrokenCall(rest.strip(), "the text ended at the beginning of a call", name_only))
            return Zone(tuple(calls), end=len(text))
        if calls and is_over and any(may_begin(rest, closing) for closing in (self.after, self.after_all)):
            return Zone(tuple(calls), end=len(text))  # what closes the calls was cut
        if not calls:
            calls.append(BrokenCall(text[:place].strip(), "no call follows"))
        return Zone(tuple(calls), end=place)

    def _tolerant_middle(self) -> str:
        return r"[0-9]*".join(tolerant(part) for part in re.split(r"\{index\}", self.middle)) + r"\s*"
