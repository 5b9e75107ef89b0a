"""Calls that are JSON objects with a name and arguments, between markers of their own or in one list."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from eft_integrations.chat.forms import WrittenCall, calls_of_value
from eft_integrations.chat.json_text import is_hopeless, json_end
from eft_integrations.chat.lark import Rules, sequence
from eft_integrations.chat.messages import Tool, ToolCall
from eft_integrations.chat.notations.base import BrokenCall, Notation, Zone

NAMED = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")')
"""The beginning of a call as far as its name."""
HEAD = re.compile(NAMED.pattern + r'\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
"""The beginning of a call whose arguments are certain to follow."""


@dataclass(frozen=True)
class JsonCalls(Notation):
    """`before_all` (`before` {"name": ..., "arguments": {...}} `after`) `between` ... `after_all`."""

    name: str
    before_all: str = ""
    before: str = ""
    after: str = ""
    between: str = "\n"
    after_all: str = ""
    arguments_key: str = "arguments"
    prefixes: tuple[str, ...] = ()
    """Markers that may stand before a call and need not."""
    has_ids: bool = False
    """A call may end with an id of nine letters and digits."""

    @property
    def markers(self) -> tuple[str, ...]:  # type: ignore[override]
        """The first word that only calls begin with."""
        opening = (self.before_all or self.before).strip().removesuffix("[").strip()
        return tuple(marker for marker in (opening, *self.prefixes) if marker)

    def write(self, calls: Sequence[ToolCall]) -> str:
        """See `Notation`."""
        written = [
            f'{self.before}{{"name": {json.dumps(call.name, ensure_ascii=False)}, '
            f'"{self.arguments_key}": {call.arguments}}}{self.after}'
            for call in calls
        ]
        return f"{self.before_all}{self.between.join(written)}{self.after_all}"

    @property
    def is_bare(self) -> bool:  # type: ignore[override]
        """See `Notation`."""
        return not (self.before_all or self.before)

    def opening_texts(self, tools: Sequence[Tool]) -> Sequence[str]:
        """See `Notation`."""
        named = [f'"name"{colon}{json.dumps(tool.name, ensure_ascii=False)}' for tool in tools for colon in (": ", ":")]
        return (*self.markers, *(named if self.is_bare else ()))

    def rule(self, tools: Sequence[Tool], rules: Rules, *, several: bool, behind: str = "") -> str:
        """See `Notation`."""
        literal = rules.literal
        call = sequence(rules.call_object(tools, self.arguments_key, further=self._id(rules)), literal(self.after))
        opening = literal(f"{self.before_all}{self.before}".removeprefix(behind))
        more = f"({sequence(literal(f'{self.between}{self.before}'), call)})*" if several else ""
        return sequence(opening, call, more, literal(self.after_all))

    def _id(self, rules: Rules) -> str:
        """The id behind the arguments, where there may be one."""
        if not self.has_ids:
            return ""
        space, value = rules.space(), rules.add("ID", '/"[a-zA-Z0-9]{9}"/')
        return f'({space} "," {space} "\\"id\\"" {space} ":" {space} {value})?'

    def openings(self, tools: Sequence[Tool], rules: Rules, *, several: bool) -> list[tuple[str, str]]:
        """See `Notation`. Both usual keys are allowed, and arguments as a text of JSON: what is read is checked."""
        keys = ("parameters", "arguments")
        more = f"({sequence(rules.literal(self.between), rules.call_object(tools, *keys))})*" if several else ""
        as_text = rules.tail(rules.json("text_of_arguments", {"type": "string"}), *keys)
        return [
            (
                rf'\s*\{{\s*"name"\s*:\s*"{re.escape(tool.name)}"',
                f"({sequence(rules.call_tail(tools, tool, *keys), more)} | {as_text})",
            )
            for tool in tools
        ]

    def read(self, text: str, tools: Sequence[Tool], *, is_over: bool) -> Zone:
        """See `Notation`. Where every call has its own marker, a zone is one call."""
        calls: list[WrittenCall | BrokenCall] = []
        opening = next(marker for marker in self.markers if text.startswith(marker))
        place = len(opening)
        while (start := self._gap(text, place)) < len(text) and text[start] == "{":
            head, end = HEAD.match(text, start), json_end(text, start)
            if end is None and (closed := self._after_broken(text, start)) is not None:
                broken, reason = text[start : closed[0]].strip(), "not a call: a name and arguments as JSON"
                calls.append(BrokenCall(broken, reason, self._partial(broken, head) or self._named(broken)))
                return Zone(tuple(calls), end=closed[1])
            if end is None and is_over:
                begun = self._partial(text, head) or self._named(text[start:])
                calls.append(BrokenCall(text[start:], "the text ended inside the call", begun))
                return Zone(tuple(calls), end=len(text))
            if end is None:
                return Zone(tuple(calls), self._partial(text, head))
            found = calls_of_value(json.loads(text[start:end], strict=False))
            calls += [WrittenCall(call.name, _as_written(text, head) or call.arguments) for call in found]
            if not found:
                calls.append(BrokenCall(text[start:end], "not a call: a name and arguments as JSON"))
            place = end
            if self.before:
                break
        closing = self.after if self.before else self.after_all
        return self._closed(text, place, closing, calls, is_over=is_over)

    def _after_broken(self, text: str, start: int) -> tuple[int, int] | None:
        """Where something that cannot become JSON is closed all the same: beginning and end of what closes it."""
        word = (self.after or self.after_all).strip().removeprefix("]")
        place = text.find(word, start) if word else -1
        return (place, place + len(word)) if place >= 0 and is_hopeless(text, start) else None

    @staticmethod
    def _gap(text: str, place: int) -> int:
        """Behind what may stand before an object: whitespace, the bracket of a list, what separates calls."""
        found = re.compile(r"[\s\[,;]*").match(text, place)
        return found.end() if found else place

    def _partial(self, text: str, head: re.Match[str] | None) -> WrittenCall | None:
        if head is None:
            return None
        end = json_end(text, head.end())
        return WrittenCall(json.loads(head[1], strict=False), text[head.end() : end])

    @staticmethod
    def _named(text: str) -> WrittenCall | None:
        """A call of which only the name is there, or the arguments in an unusual place."""
        named = NAMED.match(text)
        return None if named is None else WrittenCall(json.loads(named[1], strict=False), "")

    @staticmethod
    def _closed(text: str, place: int, closing: str, calls: list[WrittenCall | BrokenCall], *, is_over: bool) -> Zone:
        """No further object stands behind `place`: what closes the calls follows, or more must come, or the zone is over. Of what
        closes them a cut may have left the beginning.
        """
        found = re.compile(r"\s*\]?\s*").match(text, place)
        behind = found.end() if found else place
        word = closing.strip().removeprefix("]")
        rest = text[behind:]
        if not calls:
            if is_over or rest.strip(" \n\r\t[{"):
                return Zone((BrokenCall(text, "no call follows"),), end=len(text))
            return Zone()
        if word and rest.startswith(word):
            return Zone(tuple(calls), end=behind + len(word))
        if is_over and closing and (not rest.strip(",; \n") or word.startswith(rest)):
            return Zone(tuple(calls), end=len(text))
        if not is_over and (
            (word and word.startswith(rest)) or (closing and not rest.strip(",; \n") and "]" not in text[place:])
        ):
            return Zone(tuple(calls))
        if not is_over and not closing and not rest:  # a further one may follow
            return Zone(tuple(calls))
        return Zone(tuple(calls), end=behind if "]" in text[place:behind] and closing else place)


def _as_written(text: str, head: re.Match[str] | None) -> str | None:
    """The arguments letter for letter, where they stand as usual."""
    if head is None:
        return None
    end = json_end(text, head.end())
    return None if end is None else text[head.end() : end]
