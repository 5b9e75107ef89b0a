"""Schemas as grammars get them: closed where that takes nothing away, open where it would."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eft_engine.errors import InvalidOptionError
from eft_integrations.chat.messages import Tool
from eft_integrations.chat.schema import Unenforced, held, held_or_refused, unenforced
from eft_integrations.chat.schema_check import fault_of
from eft_integrations.chat.schemas.display import inlined, untitled
from tests.integrations.chat.sentences import accepts

A = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
B = {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}


@pytest.mark.parametrize(
    ("schema", "fit", "do_not"),
    [
        (A, [{"a": 1}], [{"a": 1, "x": 2}]),
        ({**A, "additionalProperties": True}, [{"a": 1}, {"a": 1, "x": 2}], []),
        ({"allOf": [A, B]}, [{"a": 1, "b": 2}], [{"a": 1}, {"a": 1, "b": 2, "x": 3}]),
        ({"allOf": [{"$ref": "#/$defs/A"}], **B, "$defs": {"A": A}}, [{"a": 2, "b": 1}], [{"b": 1}, {"a": 2, "b": 1, "x": 3}]),
        ({"$ref": "#/$defs/A", "properties": {"c": {}}, "$defs": {"A": A}}, [{"a": 1, "c": 2}], [{"a": 1, "x": 2}]),
        ({"anyOf": [A, B]}, [{"a": 1}, {"b": 1}], [{"a": 1, "x": 2}]),
        ({"type": "object", "properties": {"k": {"type": "integer"}}, "anyOf": [A, B]}, [{"k": 1, "a": 1}], [{"k": 1, "x": 1}]),
        ({"oneOf": [{**A, "properties": {**A["properties"], "t": {"const": "a"}}, "required": ["t"]},
                    {**B, "properties": {**B["properties"], "t": {"const": "b"}}, "required": ["t"]}]},
         [{"t": "a"}, {"b": 2, "t": "b"}], [{"b": 2, "t": "a"}]),
        ({"type": "object"}, [{}, {"x": 1}], []),
        ({"type": ["object", "null"], "properties": {"a": {}}}, [None, {"a": [1]}], [{"x": 1}]),
        ({"type": "object", "properties": {}, "minProperties": 1}, [{"x": 1}], []),
        ({"type": "object", "properties": {"a": {}}, "required": ["a", "c"]}, [{"a": 1, "c": 2}], [{"a": 1}]),
    ],
)  # fmt: skip
def test_objects_are_closed_where_that_takes_nothing_away(
    schema: dict[str, Any], fit: list[object], do_not: list[object]
) -> None:
    found = held(schema)
    assert not found.unenforced
    for value in fit:
        assert accepts(found.schema, json.dumps(value, separators=(",", ":"))), (value, found.schema)
        assert fault_of(value, schema) is None
    for value in do_not:
        assert not accepts(found.schema, json.dumps(value, separators=(",", ":"))), (value, found.schema)


@pytest.mark.parametrize("keyword", ["$defs", "definitions"])
def test_arguments_that_are_a_recursive_definition(keyword: str) -> None:
    node = {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "next": {"$ref": f"#/{keyword}/N"}},
        "required": ["v"],
    }
    found = held({"$ref": f"#/{keyword}/N", keyword: {"N": node}}, arguments=True)
    assert not found.unenforced
    for depth in range(4):
        value: dict[str, Any] = {"v": 1}
        for _ in range(depth):
            value = {"v": 2, "next": value}
        assert accepts(found.schema, json.dumps(value, separators=(",", ":")))
    assert not accepts(found.schema, '{"v":1,"next":{}}')


def test_a_tool_that_says_nothing_of_its_arguments_has_none() -> None:
    for parameters in ({}, {"type": "object"}, {"type": "object", "properties": {}}):
        assert accepts(held(parameters, arguments=True).schema, "{}")
        assert not accepts(held(parameters, arguments=True).schema, '{"x":1}')


def test_lists_without_repetitions_out_of_a_few_values_are_held() -> None:
    schema = {"type": "array", "uniqueItems": True, "items": {"type": "boolean"}, "minItems": 1}
    assert held(schema).unenforced == ()
    assert accepts(held(schema).schema, "[true,false]")
    assert not accepts(held(schema).schema, "[true,true]")
    assert not accepts(held(schema).schema, "[]")
    many = {"type": "array", "uniqueItems": True, "items": {"enum": list(range(9))}}
    assert held(many).unenforced == (Unenforced("", "uniqueItems"),)


def test_strict_names_whose_schema_it_is_the_keyword_and_the_place() -> None:
    schema = {"properties": {"a": {"type": "array", "items": {}, "uniqueItems": True}, "b": {"not": {"const": 1}}}}
    with pytest.raises(InvalidOptionError, match=r"tool f: .*'uniqueItems' at '/properties/a' \(and 1 more: not\)"):
        held_or_refused(schema, of="tool f", strict=True)
    assert held_or_refused(schema, of="tool f", strict=False) == held(schema)
    tools = [Tool("f", "", schema), Tool("g", "", A, strict=True)]
    assert unenforced(tools, {"not": {"const": 2}}) == [
        {"of": "tool f", "at": "/properties/a", "keyword": "uniqueItems"},
        {"of": "tool f", "at": "/properties/b", "keyword": "not"},
        {"of": "response_format", "at": "", "keyword": "not"},
    ]
    with pytest.raises(InvalidOptionError, match="response_format"):
        unenforced((), {"not": {"const": 2}}, strict_response=True)


def test_a_pattern_that_takes_for_ever_is_a_fault_and_freezes_nobody() -> None:
    reason = fault_of("a" * 60 + "!", {"pattern": r"^(?=(a+)+$)(a|aa)+$"})  # without a bound it takes years
    assert reason is not None


def test_what_a_model_is_shown() -> None:
    schema = {
        "title": "T",
        "properties": {"title": {"$ref": "#/$defs/D", "title": "x"}},
        "$defs": {"D": {"title": "D", "enum": [1]}},
    }
    assert untitled(schema) == {"properties": {"title": {"$ref": "#/$defs/D"}}, "$defs": {"D": {"enum": [1]}}}
    assert inlined(untitled(schema)) == {"properties": {"title": {"enum": [1]}}}
    tree = {"$ref": "#/$defs/N", "$defs": {"N": {"properties": {"n": {"$ref": "#/$defs/N"}}}}}
    assert inlined(tree) == {"properties": {"n": {"type": "object"}}}
