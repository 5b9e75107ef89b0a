"""Grammars with a sentence of each that is as short as any, told by hand, and what every one of their sentences looks like."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import jsonschema

from eft_engine import JsonSchema, Lark, Regex
from eft_engine.config import Grammar
from tests.choice import thorough_but


@dataclass(frozen=True)
class Sentences:
    """A grammar, one of its shortest sentences, and a pattern of Python's for all of them (for what is in JSON strings)."""

    grammar: Grammar
    shortest: str
    pattern: str = r"(?s).*"

    def check(self, text: str) -> None:
        """Raise where the text is no sentence."""
        value = text
        if isinstance(self.grammar, JsonSchema):
            value = json.loads(text)
            jsonschema.validate(value, dict(self.grammar.json_schema))
        if isinstance(value, str):
            assert re.fullmatch(self.pattern, value), text


def obj(**properties: Any) -> dict[str, Any]:
    """An object with all of these and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def of_format(name: str, shortest: str, pattern: str) -> Sentences:
    """Strings of a format."""
    return Sentences(JsonSchema(json_schema={"type": "string", "format": name}), f'"{shortest}"', pattern)


def of_pattern(pattern: str, shortest: str) -> Sentences:
    """Strings that match."""
    return Sentences(JsonSchema(json_schema={"type": "string", "pattern": pattern}), f'"{shortest}"', pattern)


def of_schema(schema: dict[str, Any], shortest: str) -> Sentences:
    """JSON values."""
    return Sentences(JsonSchema(json_schema=schema), shortest)


def of_regex(pattern: str, shortest: str) -> Sentences:
    """Texts that match."""
    return Sentences(Regex(pattern=pattern), shortest, pattern)


STRING, INTEGER = {"type": "string"}, {"type": "integer"}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {"node": obj(value=INTEGER, children={"type": "array", "items": {"$ref": "#/$defs/node"}})},
}
LIST = {"$ref": "#/$defs/item", "$defs": {"item": obj(next={"anyOf": [{"$ref": "#/$defs/item"}, {"type": "null"}]})}}

NUM_RULES = 800
TOO_COMPLEX = Lark(
    grammar="\n".join(
        [
            f'start: "x" ("n" | "y" ({" | ".join(f"r{index}" for index in range(NUM_RULES))}))',
            *(f'r{index}: "{index:04}" r{index} | "z"' for index in range(NUM_RULES)),
        ]
    )
)
"""Behind y there are more rules than llguidance follows."""

SENTENCES = {
    "address": of_pattern(r"^[a-z]+@[a-z]+\.com$", "a@a.com"),
    "file": of_pattern(r"^[a-z0-9 ]+\.(jpeg|png)$", "a.png"),
    "identifier": of_pattern(r"^[a-z_]+_id$", "a_id"),
    "decimal": of_pattern(r"^-?\d{1,12}(\.\d{1,6})?$", "1"),
    "phone": of_pattern(r"^\+?[1-9]\d{4,14}$", "10000"),
    "date-time": of_format(
        "date-time", "2000-01-01T00:00:00Z", r"(?i)\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"
    ),
    "date": of_format("date", "2000-01-01", r"\d{4}-\d\d-\d\d"),
    "time": of_format("time", "00:00:00Z", r"(?i)\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"),
    "duration": of_format("duration", "P1D", r"P(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(\d+H)?(\d+M)?(\d+S)?)?)"),
    "email": of_format("email", "a@b", r"(?s).+@.+"),
    "uri": of_format("uri", "a:", r"[A-Za-z][A-Za-z0-9+.-]*:.*"),
    "uuid": of_format("uuid", "0" * 8 + "-0000" * 3 + "-" + "0" * 12, r"(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "ipv4": of_format("ipv4", "1.1.1.1", r"\d{1,3}(\.\d{1,3}){3}"),
    "ipv6": of_format("ipv6", "::", r"(?i)[0-9a-f:.]+"),
    "hostname": of_format("hostname", "a", r"[A-Za-z0-9.-]+"),
    "enum": of_schema({"enum": ["description", "xq", "alpha beta"]}, '"xq"'),
    "nested": of_schema(obj(a=obj(b=obj(c=STRING, d=INTEGER), e=STRING)), '{"a": {"b": {"c": "", "d": 0}, "e": ""}}'),
    "items": of_schema({"type": "array", "items": STRING, "minItems": 3}, '["", "", ""]'),
    "long": of_schema({"type": "string", "minLength": 20}, f'"{"a" * 20}"'),
    "bounded": of_schema(obj(age={"type": "integer", "minimum": 18, "maximum": 120}), '{"age": 18}'),
    "union": of_schema(
        {"anyOf": [obj(kind={"const": "cat"}, name=STRING, lives=INTEGER), obj(kind={"const": "dog"}, x=INTEGER)]},
        '{"kind": "dog", "x": 0}',
    ),
    "tree": of_schema(TREE, '{"value": 0, "children": []}'),
    "list": of_schema(LIST, '{"next": null}'),
    "alternatives": of_regex("(foo|barn)baz", "foobaz"),
    "counted": of_regex("([a-z]{3}-){2}[0-9]{2,5}", "aaa-aaa-00"),
    "until": of_regex("[^@]+@[^@]+", "a@a"),
    "tagged": of_regex("(?s).*</note>[0-9]+", "</note>1"),
    "words": Sentences(Regex(pattern=r"(\w+, )+end"), "a, end", r"([^\s,]+, )+end"),
    "call": Sentences(
        Lark(grammar=f'start: "<call>" args "</call>"\nargs: %json {json.dumps(obj(n=INTEGER))}'),
        '<call>{"n":0}</call>',
    ),
}

CASES = thorough_but(SENTENCES, often=("uuid", "nested", "items", "until"))
