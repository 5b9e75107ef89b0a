"""Calls in tags with a tag for each argument: Qwen3-Coder, Qwen3.5, Nemotron 3.

Strings stand as they are, between line breaks; other values are JSON, or Python's form of it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eft_integrations.chat.forms import WrittenCall
from eft_integrations.chat.lark import Rules, sequence
from eft_integrations.chat.messages import Tool, ToolCall
from eft_integrations.chat.notations.base import NAME, BrokenCall, Notation, Zone, may_begin, skip

FUNCTION = re.compile(rf"\s*<function=(?P<name>{NAME})>")
PARAMETER = re.compile(
    r"<parameter=(?P<key>[^<>\n]+)>\n?(?P<value>.*?)\n?(?:</parameter>|(?=<parameter=|</function>|\Z))", re.DOTALL
)
OPENING, CLOSING = "<tool_call>\n", "\n</tool_call>"


@dataclass(frozen=True)
class XmlCalls(Notation):
    """`<tool_call>` `<function=name>` `<parameter=key>` value `</parameter>` ... `</function>` `</tool_call>`."""

    name: str = "qwen3-coder"
    markers: tuple[str, ...] = ("<tool_call>", "<function=")

    def write(self, calls: Sequence[ToolCall]) -> str:
        """See `Notation`."""
        return "\n".join(f"{OPENING}{self._function(call)}{CLOSING}" for call in calls)

    def example(self) -> str:
        """See `Notation`."""
        return f"{OPENING}<function=name>\n<parameter=key>\nvalue\n</parameter>\n</function>{CLOSING}"

    @staticmethod
    def _function(call: ToolCall) -> str:
        arguments = json.loads(call.arguments, strict=False)
        parameters = [
            f"<parameter={key}>\n{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n</parameter>\n"
            for key, value in arguments.items()
        ]
        return f"<function={call.name}>\n{''.join(parameters)}</function>"

    def rule(self, tools: Sequence[Tool], rules: Rules, *, several: bool, behind: str = "") -> str:
        """See `Notation`. Required arguments come first, each argument at most once."""
        literal = rules.literal
        for index, tool in enumerate(tools):
            properties = tool.parameters.get("properties") or {}
            required = tool.parameters.get("required") or ()
            ordered = sorted(properties, key=lambda key: key not in required)
            parameters = []
            for place, key in enumerate(ordered):
                opening = literal(f"<parameter={key}>\n")
                value = self._value_rule(rules, f"value_{index}_{place}", properties[key], tool.parameters)
                one = sequence(opening, value)
                parameters.append(one if key in required else f"({one})?")
            function = sequence(literal(f"<function={tool.name}>\n"), *parameters, literal("</function>"))
            rules.add(f"function_{index}", sequence(function, literal(CLOSING)))
        call = rules.add("function", " | ".join(f"function_{index}" for index in range(len(tools))))
        between = literal("\n" + OPENING)
        more = f"({between} {call})*" if several else ""
        return sequence(literal(OPENING.removeprefix(behind)), call, more)

    @staticmethod
    def _value_rule(rules: Rules, name: str, schema: object, whole: Mapping[str, object]) -> str:
        """The value with its closing tag."""
        closing = rules.literal("\n</parameter>\n")
        if _is_string(schema):
            assert isinstance(schema, Mapping), "a schema of a string is an object"
            if "enum" in schema:
                allowed = " | ".join(rules.literal(str(value)) for value in schema["enum"])
                return f"({allowed}) {closing}"
            if rules.token_of("</parameter>") is not None:  # a token ends the text, which cannot hold it
                lines = rules.add("LINES", r"/(.|\n)*\n/")
                return sequence(lines, rules.literal("</parameter>\n"))
            return rules.add(f"{name}[lazy]", r"/(.|\n)*\n<\/parameter>\n/")
        definitions = {key: whole[key] for key in ("$defs", "definitions") if key in whole}
        own = {**schema, **definitions} if isinstance(schema, Mapping) else schema
        return sequence(rules.json(name, own), closing)

    def read(self, text: str, tools: Sequence[Tool], *, is_over: bool) -> Zone:
        """See `Notation`. A call is read when all of it is there."""
        calls: list[WrittenCall | BrokenCall] = []
        place = 0
        while True:
            start = skip(text, place, "<tool_call>")
            function = FUNCTION.match(text, start)
            if function is None:
                rest = text[place:]
                if not is_over and (
                    not text[start:].strip()
                    or may_begin(text[start:], "<function=")
                    or any(may_begin(rest, marker) for marker in self.markers)
                    or re.match(r"\s*<function=[^>]*$", text[start:])
                ):
                    return Zone(tuple(calls))
                if start > place or not calls:
                    calls.append(BrokenCall(rest.strip(), "no function follows"))
                    return Zone(tuple(calls), end=len(text))
                return Zone(tuple(calls), end=place)
            closing = re.compile(r"</function>|</tool_call>").search(text, function.end())
            if closing is None:
                if not is_over:
                    return Zone(tuple(calls))
                calls.append(BrokenCall(text[place:], "the text ended inside the call"))
                return Zone(tuple(calls), end=len(text))
            body = text[function.end() : closing.start()]
            calls.append(WrittenCall(function["name"], self._arguments(function["name"], body, tools)))
            place = skip(text, closing.end(), "</tool_call>")
            if not is_over and place == closing.end() and may_begin(text[place:], "</tool_call>"):
                return Zone(tuple(calls))

    @staticmethod
    def _arguments(name: str, body: str, tools: Sequence[Tool]) -> str:
        tool = next((tool for tool in tools if tool.name == name), None)
        properties = (tool.parameters.get("properties") if tool is not None else None) or {}
        arguments = {
            found["key"].strip(): _typed(found["value"], properties.get(found["key"].strip()))
            for found in PARAMETER.finditer(body)
        }
        return json.dumps(arguments, ensure_ascii=False)


def _is_string(schema: object) -> bool:
    """Whether only strings fit."""
    if not isinstance(schema, Mapping):
        return False
    return schema.get("type") == "string" or (
        "type" not in schema and bool(schema.get("enum")) and all(isinstance(value, str) for value in schema["enum"])
    )


def _typed(value: str, schema: object) -> object:
    """A value as the schema wants it: JSON, or what Python prints; else the text."""
    if _is_string(schema):
        return value
    try:
        return json.loads(value, strict=False)
    except (ValueError, RecursionError):
        pass
    try:
        found: object = ast.literal_eval(value.strip())
        json.dumps(found)
        return found
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
