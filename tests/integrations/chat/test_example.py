"""Values that are made up for a schema fit it, whatever it says; where none is found, that is an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from eft_engine.errors import InvalidGrammarError, InvalidOptionError
from eft_integrations.chat.example import example_of
from eft_integrations.chat.schema import held
from eft_integrations.chat.schema_check import fault_of
from tests.integrations.chat.sentences import accepts
from tests.integrations.chat.shapes import SHAPES
from tests.integrations.chat.test_schema_property import documents

NODE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
    "required": ["value", "next"],
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "definitions": {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object", "properties": {"b": {"$ref": "#/$defs/B"}},
                    "required": ["b"]}, "B": {"enum": ["x", "y"]}}},
    "alternatives": {"anyOf": [{"type": "integer", "minimum": 3}, {"type": "null"}]},
    "one of several": {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 3}]},
    "all of several": {"allOf": [{"minimum": 3}, {"type": "integer", "multipleOf": 4}]},
    "a constant": {"const": {"a": [1, None]}},
    "a pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "a pattern that no mask holds": {"type": "string", "pattern": "^(?=a)[a-c]+$", "minLength": 2},
    "lengths": {"type": "string", "minLength": 12, "maxLength": 12},
    "bounds": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
    "bounds of whole numbers": {"type": "integer", "minimum": -7, "maximum": -5, "multipleOf": 3},
    "different items": {"type": "array", "items": {"type": "string"}, "minItems": 30, "uniqueItems": True},
    "different objects": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                          "minItems": 3, "uniqueItems": True},
    "lists of lists": {"type": "array", "minItems": 2, "items": {"type": "array", "minItems": 2, "items": {"type": "boolean"}}},
    "a pair": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False, "minItems": 2},
    "contained": {"type": "array", "items": {"type": "integer"}, "contains": {"const": 5}},
    "a chain": {"$ref": "#/$defs/Node", "$defs": {"Node": NODE}},
    "a condition": {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}, "b": {"type": "string"}}, "required": ["kind"],
                    "if": {"properties": {"kind": {"const": "a"}}}, "then": {"required": ["b"]}},
    "names by a pattern": {"type": "object", "patternProperties": {"^x[0-9]$": {"type": "integer"}}, "additionalProperties": False,
                           "minProperties": 3},
    "a map": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2},
    "not": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "minProperties": 1, "not": {"required": ["a"]}},
}  # fmt: skip
FORMATS = (
    "date",
    "time",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uri",
    "uuid",
    "uuid4",
    "base64",
)


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=list(SCHEMAS))
@pytest.mark.parametrize("seed", [0, 5])
def test_a_value_fits_its_schema(schema: dict[str, Any], seed: int) -> None:
    value = example_of(schema, seed=seed)
    assert fault_of(value, schema) is None
    assert example_of(schema, seed=seed) == value


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_pydantic_takes_what_is_made_for_its_classes(shape: Any) -> None:
    adapter = TypeAdapter(shape)
    adapter.validate_json(json.dumps(example_of(adapter.json_schema())))


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_kept_and_its_values_differ(name: str) -> None:
    schema = {"type": "array", "items": {"type": "string", "format": name, "minLength": 3}, "minItems": 3}
    values = example_of({**schema, "uniqueItems": True})
    assert accepts(held(schema).schema, json.dumps(values, separators=(",", ":")))


def test_the_simplest_value_is_made() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["first", "second"]}, "b": {"type": "string"}, "c": {"type": "integer"}},
    }
    assert example_of({**schema, "required": ["a", "c"]}) == {"a": "first", "c": 0}
    assert example_of({**schema, "required": ["a", "c"]}, seed=1) == {"a": "second", "c": 1}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"allOf": [False]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#"}, "minItems": 1}}},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "uniqueItems": True},
    ],
)
def test_a_schema_that_nothing_fits_is_an_error(schema: dict[str, Any]) -> None:
    with pytest.raises(
        InvalidGrammarError, match="no value was found that fits the schema .*; give the answer yourself"
    ):
        example_of(schema)


def test_what_is_no_schema_is_an_error() -> None:
    with pytest.raises(InvalidOptionError, match="no JSON schema"):
        example_of({"type": 5})


def test_arguments_are_an_object() -> None:
    assert example_of({}, arguments=True) == {}
    assert example_of(
        {"type": ["object", "null"], "properties": {"a": {"type": "null"}}, "required": ["a"]}, arguments=True
    ) == {"a": None}


@pytest.mark.thorough
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(documents(), st.integers(0, 3))
def test_no_value_is_wrong(schema: dict[str, Any], seed: int) -> None:
    try:
        value = example_of(schema, seed=seed)
    except InvalidGrammarError:
        return
    assert fault_of(value, schema) is None
