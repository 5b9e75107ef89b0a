"""Grammars in Lark, as llguidance reads them: literals of a tokenizer, JSON by schema, and rules by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from eft_integrations.chat.messages import Tool
from eft_integrations.chat.schema import held

WHITESPACE = r"[ \t]?|\n[ \t]{0,24}"
"""Between the parts of JSON: a space, or a line break with an indentation. Without a bound a small model writes it without end."""

GUIDANCE: Mapping[str, object] = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE}


class Rules:
    """Rules of one grammar, and the literals of one tokenizer.

    Args:
        control_tokens: texts that a grammar can only name by their token id: those that the tokenizer flags as special, and those
            written `<...>`, which llguidance takes for special.
        reasoning_budget: most tokens of a thought that a notation writes in a form of its own; None: as many as there are.
    """

    def __init__(self, control_tokens: Mapping[str, int], *, reasoning_budget: int | None = None) -> None:
        self._control_tokens = control_tokens
        self.reasoning_budget = reasoning_budget
        self._rules: dict[str, str] = {}

    def add(self, name: str, body: str) -> str:
        """A rule (small letters, attributes in brackets behind them) or a terminal (capitals); gives its name back. The same name
        has one body.
        """
        assert self._rules.setdefault(name, body) == body, f"two rules called {name}"
        return name.partition("[")[0]

    def text(self, start: str) -> str:
        """The whole grammar."""
        head = ["%llguidance {}"] if any("[lazy]" in name for name in self._rules) else []
        return "\n".join([*head, f"start: {start}", *(f"{name}: {body}" for name, body in self._rules.items())])

    def literal(self, text: str) -> str:
        """A Lark expression of exactly this text; nothing for an empty one."""
        if not text:
            return ""
        known = max((token for token in self._control_tokens if token in text), key=len, default=None)
        if known is None:
            return json.dumps(text, ensure_ascii=False)
        before, _, after = text.partition(known)
        parts = (self.literal(before), f"<[{self._control_tokens[known]}]>", self.literal(after))
        return " ".join(part for part in parts if part)

    def token_of(self, marker: str) -> int | None:
        """The id of a control token."""
        return self._control_tokens.get(marker)

    def space(self) -> str:
        """Whitespace inside JSON."""
        return self.add("SPACE", f"/{WHITESPACE}/")

    def json(self, name: str, schema: object) -> str:
        """A JSON value of a schema."""
        return self.held_json(name, held(schema).schema)

    def held_json(self, name: str, held_schema: Mapping[str, object]) -> str:
        """A JSON value of a schema that is a grammar's already."""
        return self.add(name, f"%json {json.dumps({**held_schema, 'x-guidance': GUIDANCE}, ensure_ascii=False)}")

    def arguments(self, tools: Sequence[Tool], tool: Tool) -> str:
        """The arguments of one of the tools, as a JSON object."""
        return self.held_json(f"args_{tools.index(tool)}", held(tool.parameters, arguments=True).schema)

    def call_object(self, tools: Sequence[Tool], *keys: str, further: str = "") -> str:
        """A JSON object with the name of a tool and its arguments, under one of the keys; `further`: what may come behind them."""
        space, suffix = self.space(), "_".join(keys)
        alternatives = []
        for index, tool in enumerate(tools):
            name = json.dumps(json.dumps(tool.name, ensure_ascii=False), ensure_ascii=False)
            tail = self.call_tail(tools, tool, *keys, further=further)
            body = f'"{{" {space} "\\"name\\"" {space} ":" {space} {name} {tail}'
            alternatives.append(self.add(f"object_{suffix}_{index}", body))
        return self.add(f"object_{suffix}", " | ".join(alternatives))

    def call_tail(self, tools: Sequence[Tool], tool: Tool, *keys: str, further: str = "") -> str:
        """What follows the name of a tool in such an object."""
        body = self.tail(self.arguments(tools, tool), *keys, further=further)
        return self.add(f"tail_{'_'.join(keys)}_{tools.index(tool)}", body)

    def tail(self, value: str, *keys: str, further: str = "") -> str:
        """A value under one of the keys, and the end of the object that it stands in."""
        space = self.space()
        key = " | ".join(json.dumps(f'"{key}"') for key in keys)
        return sequence(f'{space} "," {space} ({key}) {space} ":" {space} {value}', further, f'{space} "}}"')


def sequence(*parts: str) -> str:
    """Lark expressions one after another; empty ones are left out."""
    return " ".join(part for part in parts if part)
