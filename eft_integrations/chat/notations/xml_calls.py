"""Calls in tags with a tag for each argument: Qwen3-Coder, Qwen3.5, Nemotron 3.

Strings stand as they are, between line breaks; other values are JSON, or Python's form of it.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eft_integrations.chat.forms import WrittenCall
from eft_integrations.chat.lark import Rules, sequence
from eft_integrations.chat.messages import Tool, ToolCall
from eft_integrations.chat.notations.base import NAME, BrokenCall, Notation, Zone, may_begin, overlap, skip
from eft_integrations.chat.schema import arguments_of
from eft_integrations.chat.schema_check import fault_of
from eft_integrations.chat.schemas.facts import values_of
from eft_integrations.chat.schemas.strings import text_expressions

FUNCTION = re.compile(rf"\s*<function=(?P<name>{NAME})>")
PARAMETER = re.compile(
    r"<parameter=(?P<key>[^<>\n]+)>\n?(?P<value>.*?)\n?(?:</parameter>|(?=<parameter=|</function>|\Z))", re.DOTALL
)
OPENING, CLOSING = "<tool_call>\n", "\n</tool_call>"
ANY_TEXT = (r"(.|\n)*",)
EMPTY = '""'
"""Nothing, in Lark."""


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
            forms = []
            for number, form in enumerate(arguments_of(tool.parameters)):
                parameters = []
                for place, own in enumerate(form):
                    value = self._value_rule(rules, f"value_{index}_{number}_{place}", own.schema)
                    one = sequence(literal(f"<parameter={own.name}>\n"), value)
                    parameters.append(one if own.is_required else f"({one})?")
                forms.append(sequence(*parameters) or EMPTY)
            body = f"({' | '.join(forms)})"
            function = sequence(literal(f"<function={tool.name}>\n"), body, literal("</function>"))
            rules.add(f"function_{index}", sequence(function, literal(CLOSING)))
        call = rules.add("function", " | ".join(f"function_{index}" for index in range(len(tools))))
        between = literal("\n" + OPENING)
        more = f"({between} {call})*" if several else ""
        return sequence(literal(OPENING.removeprefix(behind)), call, more)

    @staticmethod
    def _value_rule(rules: Rules, name: str, schema: Mapping[str, Any]) -> str:
        """The value with its closing tag."""
        closing = rules.literal("\n</parameter>\n")
        if not _is_string(schema):
            return sequence(rules.held_json(name, schema), closing)
        if (values := values_of(schema)) is not None:
            allowed = [rules.literal(value) or EMPTY for value in values]
            return f"({' | '.join(allowed)}) {closing}"
        expressions = [own.replace("/", r"\/") for own in text_expressions(schema)]
        if rules.token_of("</parameter>") is not None:  # a token ends the text, which cannot hold it
            body = " & ".join(f"/({own})\\n/" for own in expressions or ANY_TEXT)
            return sequence(rules.add(name.upper() if expressions else "LINES", body), rules.literal("</parameter>\n"))
        body = " & ".join(rf"/({own})\n<\/parameter>\n/" for own in expressions or ANY_TEXT)
        return rules.add(f"{name}[lazy]", body)

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
                begun = WrittenCall(function["name"], self._so_far(function["name"], text[function.end() :], tools))
                calls.append(BrokenCall(text[place:], "the text ended inside the call", begun))
                return Zone(tuple(calls), end=len(text))
            body = text[function.end() : closing.start()]
            calls.append(WrittenCall(function["name"], self._arguments(function["name"], body, tools)))
            place = skip(text, closing.end(), "</tool_call>")
            if not is_over and place == closing.end() and may_begin(text[place:], "</tool_call>"):
                return Zone(tuple(calls))

    @classmethod
    def _so_far(cls, name: str, body: str, tools: Sequence[Tool]) -> str:
        """The arguments as far as they are written, as JSON that has no end."""
        whole, opening, last = body.rpartition("<parameter=")
        if not opening or "</parameter>" in last:
            whole, opening, last = body, "", ""
        written = cls._arguments(name, whole, tools).removesuffix("}")
        if not opening:
            return written
        key, closed, value = last.partition(">")
        written += f'{", " if len(written) > 1 else ""}"{key}'
        if not closed:
            return written
        value = value.removeprefix("\n")
        value = value[: len(value) - overlap(value, "\n</parameter>")]
        is_text = _is_string(cls._properties(name, tools).get(key))
        return f'{written}": {json.dumps(value, ensure_ascii=False)[:-1] if is_text else value}'

    @staticmethod
    def _properties(name: str, tools: Sequence[Tool]) -> Mapping[str, Mapping[str, Any]]:
        """What a grammar holds of each argument of a tool."""
        tool = next((tool for tool in tools if tool.name == name), None)
        if tool is None:
            return {}
        return {own.name: own.schema for form in reversed(arguments_of(tool.parameters)) for own in form}

    @classmethod
    def _arguments(cls, name: str, body: str, tools: Sequence[Tool]) -> str:
        properties = cls._properties(name, tools)
        arguments = {
            found["key"].strip(): _typed(found["value"], properties.get(found["key"].strip()))
            for found in PARAMETER.finditer(body)
        }
        return json.dumps(arguments, ensure_ascii=False)


def _is_string(schema: Mapping[str, Any] | None) -> bool:
    """Whether only strings fit."""
    if schema is None:
        return False
    values = values_of(schema)
    return schema.get("type") == "string" or bool(values and all(isinstance(value, str) for value in values))


def _typed(value: str, schema: Mapping[str, Any] | None) -> object:
    """A value as the schema wants it: JSON, or what Python prints, or the text; the first of these that fits it."""
    if _is_string(schema):
        return value
    readings = [*_readings(value), value]
    return next((own for own in readings if schema is None or fault_of(own, schema) is None), readings[0])


def _readings(value: str) -> Iterator[object]:
    with contextlib.suppress(ValueError, RecursionError):
        yield json.loads(value, strict=False)
    with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        found: object = ast.literal_eval(value.strip())
        json.dumps(found)
        yield found
