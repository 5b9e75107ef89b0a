"""Calls as a list of Python calls: Llama 3.2 and 4, LFM2."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from eft_integrations.chat.forms import python_calls
from eft_integrations.chat.lark import Rules, sequence
from eft_integrations.chat.messages import Tool, ToolCall
from eft_integrations.chat.notations.base import BrokenCall, Notation, Zone
from eft_integrations.chat.schema import arguments_of
from eft_integrations.chat.torn import torn_calls


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

    def opening_texts(self, tools: Sequence[Tool]) -> Sequence[str]:
        """See `Notation`."""
        return (*self.markers, *(f"[{tool.name}(" for tool in tools if self.is_bare))

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
        index, forms = tools.index(tool), []
        for number, form in enumerate(arguments_of(tool.parameters)):
            values = [
                sequence(json.dumps(f"{own.name}="), rules.held_json(f"value_{index}_{number}_{place}", own.schema))
                for place, own in enumerate(form)
            ]
            num_required = sum(own.is_required for own in form)
            required, optional = values[:num_required], [f'(", " {value})?' for value in values[num_required:]]
            if required:
                forms.append(sequence(' ", " '.join(required), *optional))
            elif optional:  # whichever comes first has no comma before it
                firsts = [sequence(value, *optional[place + 1 :]) for place, value in enumerate(values)]
                forms.append(f"({' | '.join(firsts)})?")
            else:
                forms.append('""')
        return rules.add(f"keywords_{index}", sequence(f"({' | '.join(forms)})", '")"'))

    def read(self, text: str, tools: Sequence[Tool], *, is_over: bool) -> Zone:
        """See `Notation`."""
        start = len(next((marker for marker in self.markers if text.startswith(marker)), ""))
        closing = self.closing or "<|python_end|>"
        end = text.find(closing, start)
        if end < 0 and not is_over:
            return Zone()
        body = text[start : end if end >= 0 else len(text)]
        names = [tool.name for tool in tools]
        found = python_calls(body, names)
        place = len(text) if end < 0 else end + len(closing)
        if found is not None:
            return Zone(tuple(found), end=place)
        if end >= 0:
            return Zone((BrokenCall(text[:place], "not a list of calls"),), end=place)
        torn = torn_calls(body, names)
        if torn is None:
            return Zone((BrokenCall(text, "the text ended inside the call"),), end=place)
        broken = [BrokenCall(torn.text, "the text ended inside the call", torn.begun)] if torn.text else []
        return Zone((*torn.calls, *broken), end=place)
