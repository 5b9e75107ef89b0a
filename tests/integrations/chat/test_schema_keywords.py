"""Seventy-eight forms of keywords in a tool of which no call is demanded.

Each is accepted. A value that fits can be written and is a call; one that does not fit can either not be written, or the keyword is
reported as unenforced, the call is none when it is whole, and a strict tool is refused by name.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from eft_engine import JsonSchema, Lark
from eft_engine.errors import InvalidOptionError
from eft_integrations.chat.messages import InvalidToolCall, Message, Tool, ToolCall
from eft_integrations.chat.prompt import Asked, ControlTokens
from eft_integrations.chat.reading import CallReader
from eft_integrations.chat.request import ChatRequest
from tests.integrations.chat.sentences import accepts

Form = tuple[str, dict[str, Any] | bool, Any, Any]
"""Name, schema of the argument, a value that fits, one that does not."""

NODE = {"$ref": "#/$defs/Node"}
A_OR_B = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
EMAIL, URI = "jo@example.com", "https://example.com/a"

FORMS: tuple[Form, ...] = (
    ("type", {"type": "integer"}, 3, "x"),
    ("types", {"type": ["string", "null"]}, None, 3),
    ("enum", {"enum": ["a", 2, None]}, 2, "b"),
    ("const", {"const": {"a": [1]}}, {"a": [1]}, {"a": [2]}),
    ("enum of objects", {"enum": [{"a": 1}, [2]]}, [2], [3]),
    ("true", True, [1], None),
    ("empty", {}, {"x": 1}, None),
    ("minimum", {"type": "integer", "minimum": 2}, 2, 1),
    ("maximum", {"type": "number", "maximum": 2.5}, 2.5, 3),
    ("exclusiveMinimum", {"type": "integer", "exclusiveMinimum": 2}, 3, 2),
    ("exclusiveMaximum", {"type": "number", "exclusiveMaximum": 2}, 1, 2),
    ("exclusiveMinimum of draft 4", {"type": "integer", "minimum": 2, "exclusiveMinimum": True}, 3, 2),
    ("multipleOf", {"type": "integer", "multipleOf": 3}, 6, 7),
    ("multipleOf a fraction", {"type": "number", "multipleOf": 0.5}, 1.5, 1.3),
    ("minLength", {"type": "string", "minLength": 2}, "ab", "a"),
    ("maxLength", {"type": "string", "maxLength": 2}, "ab", "abc"),
    ("pattern", {"type": "string", "pattern": "^[a-z]{2}$"}, "ab", "AB"),
    ("pattern anywhere", {"type": "string", "pattern": "b"}, "abc", "ac"),
    ("look-ahead", {"type": "string", "pattern": "^(?=.*a).{3}$"}, "bab", "bbb"),
    ("negative look-ahead", {"type": "string", "pattern": "^(?!x)[a-z]+$"}, "ax", "xa"),
    ("look-behind", {"type": "string", "pattern": "(?<=a)b"}, "ab", "cb"),
    ("back-reference", {"type": "string", "pattern": r"^(a|b)\1$"}, "aa", "ab"),
    ("date-time", {"type": "string", "format": "date-time"}, "2024-05-03T10:00:00Z", "noon"),
    ("date", {"type": "string", "format": "date"}, "2024-05-03", "today"),
    ("time", {"type": "string", "format": "time"}, "10:00:00Z", "noon"),
    ("duration", {"type": "string", "format": "duration"}, "P1D", "a day"),
    ("email", {"type": "string", "format": "email"}, EMAIL, "jo"),
    ("uri", {"type": "string", "format": "uri"}, URI, "no uri"),
    ("uuid", {"type": "string", "format": "uuid"}, "123e4567-e89b-12d3-a456-426614174000", "123"),
    ("ipv4", {"type": "string", "format": "ipv4"}, "10.0.0.1", "10.0"),
    ("ipv6", {"type": "string", "format": "ipv6"}, "::1", "10.0"),
    ("hostname", {"type": "string", "format": "hostname"}, "example.com", "no host"),
    ("unknown format", {"type": "string", "format": "phone"}, "anything", None),
    ("format of a number", {"type": "integer", "format": "int64"}, 3, "x"),
    ("contentEncoding", {"type": "string", "contentEncoding": "base64"}, "YQ==", None),
    ("contentMediaType", {"type": "string", "contentMediaType": "application/json"}, "{}", None),
    ("items", {"type": "array", "items": {"type": "integer"}}, [1], ["a"]),
    ("prefixItems", {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False}, [1, "a"], ["a"]),
    ("items as a list", {"type": "array", "items": [{"type": "integer"}], "additionalItems": False}, [1], ["a"]),
    ("minItems", {"type": "array", "items": {"type": "integer"}, "minItems": 2}, [1, 2], [1]),
    ("maxItems", {"type": "array", "items": {"type": "integer"}, "maxItems": 1}, [1], [1, 2]),
    ("uniqueItems", {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, [1, 2], [1, 1]),
    ("uniqueItems of an enum", {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}, ["b", "a"], ["a", "a"]),
    ("contains", {"type": "array", "contains": {"const": 1}}, [2, 1], [2]),
    ("minContains", {"type": "array", "contains": {"const": 1}, "minContains": 2}, [1, 1], [1, 2]),
    ("unevaluatedItems", {"type": "array", "prefixItems": [{"type": "integer"}], "unevaluatedItems": False}, [1], [1, 2]),
    ("properties", A_OR_B, {"a": 1}, {"a": "x"}),
    ("required", {**A_OR_B, "required": ["b"]}, {"b": 1}, {"a": 1}),
    ("required without a property", {"type": "object", "required": ["c"]}, {"c": 1}, {"a": 1}),
    ("additionalProperties", {"type": "object", "additionalProperties": {"type": "integer"}}, {"x": 1}, {"x": "y"}),
    ("patternProperties", {"type": "object", "patternProperties": {"^x": {"type": "integer"}}}, {"xa": 1}, {"xa": "y"}),
    ("propertyNames", {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}}, {"ab": 1}, {"AB": 1}),
    ("propertyNames of other length", {"type": "object", "propertyNames": {"not": {"const": "x"}}}, {"ab": 1}, {"x": 1}),
    ("minProperties", {**A_OR_B, "minProperties": 1}, {"a": 1}, {}),
    ("minProperties of free names", {"type": "object", "minProperties": 3}, {"a": 1, "b": 2, "c": 3}, {"a": 1}),
    ("maxProperties", {"type": "object", "maxProperties": 1}, {"a": 1}, {"a": 1, "b": 2}),
    ("dependentRequired", {**A_OR_B, "dependentRequired": {"a": ["b"]}}, {"a": 1, "b": 1}, {"a": 1}),
    ("dependentSchemas", {**A_OR_B, "dependentSchemas": {"a": {"required": ["b"]}}}, {"b": 1}, {"a": 1}),
    ("dependencies", {**A_OR_B, "dependencies": {"a": ["b"]}}, {"b": 1}, {"a": 1}),
    ("unevaluatedProperties", {**A_OR_B, "unevaluatedProperties": False}, {"a": 1}, {"c": 1}),
    ("allOf", {"allOf": [A_OR_B, {"required": ["a"]}]}, {"a": 1}, {"b": 1}),
    ("allOf of objects", {"allOf": [A_OR_B, {"properties": {"c": {"type": "string"}}}]}, {"a": 1, "c": "x"}, {"c": 2}),
    ("allOf of one", {"allOf": [{"$ref": "#/$defs/Colour"}], "default": "red"}, "red", "blue"),
    ("anyOf", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None, "x"),
    ("anyOf beside properties", {**A_OR_B, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"b": 1}, {}),
    ("oneOf apart", {"oneOf": [{"type": "integer"}, {"type": "string"}]}, "x", None),
    ("oneOf not apart", {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 5}]}, 3, 7),
    ("not", {"type": "integer", "not": {"const": 3}}, 2, 3),
    ("if and then", {**A_OR_B, "if": {"required": ["a"]}, "then": {"required": ["b"]}}, {"b": 1}, {"a": 1}),
    ("if and else", {**A_OR_B, "if": {"required": ["a"]}, "else": {"required": ["b"]}}, {"a": 1}, {}),
    ("$ref", {"$ref": "#/$defs/Colour"}, "red", "blue"),
    ("$ref beside more", {"$ref": "#/$defs/Base", "properties": {"more": {"type": "integer"}}}, {"id": 1, "more": 2}, {"id": "x"}),
    ("$ref in itself", NODE, {"v": 1, "next": {"v": 2}}, {"v": 1, "next": {}}),
    ("$ref into definitions", {"$ref": "#/definitions/Old"}, "old", "new"),
    ("$ref elsewhere", {"$ref": "https://example.com/schema.json"}, {"a": 1}, None),
    ("$ref to nothing", {"$ref": "#/$defs/Nothing"}, 3, None),
    ("$anchor", {"$ref": "#anchored"}, 4, "x"),
    ("annotations", {"type": "integer", "title": "T", "examples": [1], "deprecated": True, "x-order": 3, "nullable": True}, 1, "x"),
)  # fmt: skip

DEFINITIONS = {
    "$defs": {
        "Colour": {"enum": ["red", "green"]},
        "Base": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]},
        "Node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "next": {"anyOf": [NODE, {"type": "null"}]}},
            "required": ["v"],
        },
        "Anchored": {"$anchor": "anchored", "type": "integer"},
    },
    "definitions": {"Old": {"const": "old"}},
}


def tool_of(schema: dict[str, Any] | bool, *, strict: bool = False) -> Tool:
    """A tool with one argument."""
    parameters = {"type": "object", "properties": {"arg": schema}, "required": ["arg"], **DEFINITIONS}
    return Tool("do_it", "does it", parameters, strict)


def asked_with(tool: Tool) -> Asked:
    """A question with the tool, of which no call is demanded."""
    request = ChatRequest(messages=(Message("user", "Now."),), tools=(tool,))
    return Asked.of(request, chat_template=None, control_tokens=ControlTokens.of({}, ()))


def written(value: Any) -> str:
    """A call with this argument."""
    call = {"name": "do_it", "arguments": {"arg": value}}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def can_be_written(asked: Asked, value: Any) -> bool:
    """Whether the grammar lets the model write it."""
    grammar = asked.options["sampling"].grammar
    assert isinstance(grammar, Lark)
    assert not isinstance(grammar, JsonSchema)
    return accepts(grammar.grammar, written(value))


def what_comes_of(asked: Asked, value: Any) -> list[object]:
    """What is read of such a call."""
    assert asked.reading is not None
    reader = CallReader(asked.reading)
    pieces = [*reader.feed(written(value)), *reader.finish()]
    return [piece for piece in pieces if isinstance(piece, ToolCall | InvalidToolCall)]


def test_there_are_as_many_as_we_say() -> None:
    assert len({name for name, *_ in FORMS}) == 78


@pytest.mark.parametrize(("schema", "fits", "breaks"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS])
def test_form(schema: dict[str, Any] | bool, fits: Any, breaks: Any) -> None:
    asked = asked_with(tool_of(schema))
    reported = asked.metadata.get("unenforced", [])
    assert can_be_written(asked, fits)
    (call,) = what_comes_of(asked, fits)
    assert isinstance(call, ToolCall), call
    if breaks is not None and can_be_written(asked, breaks):
        assert reported
        (call,) = what_comes_of(asked, breaks)
        assert isinstance(call, InvalidToolCall)
        assert (call.name, json.loads(call.arguments or "")) == ("do_it", {"arg": breaks})
    if not reported:
        asked_with(tool_of(schema, strict=True))
        return
    with pytest.raises(InvalidOptionError, match="do_it") as raised:
        asked_with(tool_of(schema, strict=True))
    assert str(reported[0]["keyword"]) in str(raised.value)  # type: ignore[index, call-overload]


@pytest.mark.parametrize("schema", [{"type": 5}, {"enum": 3}, {"properties": [1]}, {"required": "a"}])
def test_what_is_no_schema_is_refused_by_name(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match="tool do_it"):
        asked_with(tool_of(schema))
