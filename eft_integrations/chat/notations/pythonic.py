"""Calls as a list of Python calls: Llama 3.2 and 4, LFM2."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from eft_integrations.chat.forms import WrittenCall, python_calls
from eft_integrations.chat.lark import Rules, sequence
from eft_integrations.chat.messages import Tool, ToolCall
from eft_integrations.chat.notations.base import BrokenCall, Notation, Zone


@dataclass(frozen=True)
class PythonicCalls(Notation):
    """`opening` [name(key=value, ...), ...] `closing`; without an opening, calls are the answer as a whole."""

    name: str = "pythonic"
    opening: str = ""
    closing: str = ""
    prefixes: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:  # type: ignore[override]
        """What opens the list, where anything does."""
        return tuple(marker for marker in (self.opening, *self.prefixes) if marker)

    def write(self, calls: Sequence[ToolCall]) -> str:
        """See `Notation`."""
        written = []
        for call in calls:
            arguments = json.loads(call.arguments, strict=False)
            listed = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            written.append(f"{call.name}({listed})")
        return f"{self.opening}[{', '.join(written)}]{self.closing}"

    def example(self) -> str:
        """See `Notation`."""
        return f"{self.opening}[name(key=value, ...)]{self.closing}"

    @property
    def is_bare(self) -> bool:  # type: ignore[override]
        """See `Notation`."""
        return not self.opening

    def openings(self, tools: Sequence[Tool], rules: Rules, *, several: bool) -> list[tuple[str, str]]:
        """See `Notation`."""
        more = self._more(tools, rules, several=several)
        return [
            (rf"\s*\[\s*{re.escape(tool.name)}\(", sequence(self._keywords(tools, tool, rules), more, '"]"'))
            for tool in tools
        ]

    def rule(self, tools: Sequence[Tool], rules: Rules, *, several: bool, behind: str = "") -> str:
        """See `Notation`. Values are JSON, which Python calls may hold too; required arguments come first."""
        opening, closing = rules.literal(self.opening.removeprefix(behind)), rules.literal(self.closing)
        return sequence(
            opening, '"["', self._call(tools, rules), self._more(tools, rules, several=several), '"]"', closing
        )

    def _more(self, tools: Sequence[Tool], rules: Rules, *, several: bool) -> str:
        return f'(", " {self._call(tools, rules)})*' if several else ""

    def _call(self, tools: Sequence[Tool], rules: Rules) -> str:
        calls = [sequence(json.dumps(f"{tool.name}("), self._keywords(tools, tool, rules)) for tool in tools]
        return rules.add("python", " | ".join(calls))

    @staticmethod
    def _keywords(tools: Sequence[Tool], tool: Tool, rules: Rules) -> str:
        """Keywords and the closing bracket."""
        index, properties = tools.index(tool), tool.parameters.get("properties") or {}
        required = [key for key in properties if key in (tool.parameters.get("required") or ())]
        optional = [key for key in properties if key not in required]
        definitions = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
        values = {}
        for place, key in enumerate([*required, *optional]):
            own = properties[key]
            value = rules.json(f"value_{index}_{place}", {**own, **definitions} if isinstance(own, dict) else own)
            values[key] = sequence(json.dumps(f"{key}="), value)
        inner = ' ", " '.join(values[key] for key in required)
        further = " ".join(f'(", " {values[key]})?' for key in optional)
        if not required and optional:
            firsts = [
                sequence(values[key], *(f'(", " {values[other]})?' for other in optional[place + 1 :]))
                for place, key in enumerate(optional)
            ]
            inner, further = f"({' | '.join(firsts)})?", ""
        return rules.add(f"keywords_{index}", sequence(inner, further, '")"'))

    def read(self, text: str, tools: Sequence[Tool], *, is_over: bool) -> Zone:
        """See `Notation`."""
        start = len(next((marker for marker in self.markers if text.startswith(marker)), ""))
        closing = self.closing or "<|python_end|>"
        end = text.find(closing, start)
        if end < 0 and not is_over:
            return Zone()
        body = text[start : end if end >= 0 else len(text)]
        found = python_calls(body, [tool.name for tool in tools])
        place = len(text) if end < 0 else end + len(closing)
        if found is None:
            reason = "the text ended inside the call" if end < 0 else "not a list of calls"
            return Zone((BrokenCall(text[:place], reason),), end=place)
        return Zone(tuple(WrittenCall(call.name, call.arguments) for call in found), end=place)
