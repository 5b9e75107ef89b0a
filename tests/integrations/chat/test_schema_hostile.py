"""Schemas that callers of a server may send: whatever they are, nothing freezes, overflows or is refused without a reason."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from eft_engine.errors import InvalidOptionError
from eft_engine.overdue import for_others
from eft_integrations.chat import schema_check
from eft_integrations.chat.messages import Tool
from eft_integrations.chat.schema import held, unenforced
from eft_integrations.chat.schema_check import fault_of
from eft_integrations.chat.schemas import trial
from eft_integrations.chat.schemas.display import inlined
from eft_integrations.chat.schemas.together import most_together
from eft_integrations.chat.schemas.trial import problem
from tests.integrations.chat.sentences import accepts, sentence

OBJECT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


def chain(length: int, link: Any, last: Any = OBJECT) -> dict[str, Any]:
    """Definitions of which each is made of the next."""
    definitions = {f"d{index}": link({"$ref": f"#/$defs/d{index + 1}"}) for index in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{length}": last}}


HOSTILE: dict[str, dict[str, Any]] = {
    "a long chain of names": chain(500, lambda inner: inner),
    "a long chain of properties": chain(500, lambda inner: {"type": "object", "properties": {"x": inner}}),
    "twice each, in properties": chain(60, lambda inner: {"type": "object", "properties": {"x": inner, "y": inner}}),
    "twice each, all of them": chain(60, lambda inner: {"allOf": [inner, inner]}),
    "twice each, any of them": chain(60, lambda inner: {"anyOf": [inner, inner]}),
    "twice each, one of them": chain(60, lambda inner: {"oneOf": [inner, inner]}),
    "twice each, beside properties": chain(6, lambda inner: {"properties": {"a": {}}, "anyOf": [inner, inner]}),
    "a name for itself": {"$ref": "#"},
    "a circle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}, {}]}}},
    "a list that never ends": {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#"}, "minItems": 1}}},
    "multiples of a large prime": {"type": "integer", "multipleOf": 9999991},
    "multiples of many": {"allOf": [{"type": "integer", "multipleOf": own} for own in (97, 89, 83, 79)]},
    "many texts": {"enum": [f"text {index}" for index in range(20_000)]},
    "large bounds": {"type": "array", "items": {"type": "string", "minLength": 10**9}, "minItems": 10**8},
    "large numbers": {"enum": [2**53 + 1, 2**64], "minimum": -(2**80)},
    "nothing fits": {"type": "integer", "minimum": 3, "maximum": 2},
    "false": {"allOf": [False]},
    "no pattern": {"type": "string", "pattern": "("},
    "expressions in each other's way": {"type": "string", "allOf": [
        {"pattern": f"\\w{{{5 + index}}}.*{sign}"} for index, sign in enumerate("abcdefghijklmnopqrstuvwxyz")
    ]},
    "a pattern of repetitions": {"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"},
}  # fmt: skip


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=list(HOSTILE))
def test_every_schema_is_taken(schema: dict[str, Any]) -> None:
    found = held(schema)
    assert problem(found.schema) is None
    assert len(json.dumps(found.schema)) < 20 * len(json.dumps(schema)) + 20_000
    text = sentence(found.schema, random.Random(0), max_len=2000)
    if text is not None and not found.unenforced:
        assert fault_of(json.loads(text), schema) is None or "not decided" in str(fault_of(json.loads(text), schema))
    assert len(json.dumps(inlined(schema))) < 2_000_000


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": "^(a|aa)+$"}, "a" * 60 + "!"),
        ({"patternProperties": {"^(a|aa)+$": {}}, "additionalProperties": False}, {"a" * 60 + "!": 1}),
        ({"patternProperties": {"^(a|aa)+$": {}}, "unevaluatedProperties": False}, {"a" * 60 + "!": 1}),
        (chain(60, lambda inner: {"allOf": [inner, inner]}), {"x": 1}),
        (chain(60, lambda inner: {"anyOf": [inner, inner]}), {"y": 1}),
    ],
)
def test_a_check_that_would_take_for_ever_fails_with_the_reason(schema: dict[str, Any], value: Any) -> None:
    assert "was not decided within" in str(fault_of(value, schema))


@pytest.mark.parametrize("dialect", [None, *(f"http://json-schema.org/draft-0{draft}/schema#" for draft in (4, 6, 7))])
def test_words_of_older_drafts(dialect: str | None) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "pair": {"type": "array", "items": [{"type": "integer"}, {"type": "string"}], "additionalItems": False},
            "card": {"type": "string"},
        },
        "dependencies": {"card": ["pair"]},
        **({} if dialect is None else {"$schema": dialect}),
    }
    assert [own.keyword for own in held(schema).unenforced] == ["dependencies"]
    for value, fits in (
        ({"pair": [1, "a"]}, True),
        ({"pair": ["a"]}, False),
        ({"pair": [1, "a", 2]}, False),
        ({"card": "x"}, False),
    ):
        assert (fault_of(value, schema) is None) is fits
        text = json.dumps(value, separators=(",", ":"))
        assert accepts(held(schema).schema, text) is (fits or "card" in value)


def test_beside_a_reference_older_drafts_say_nothing() -> None:
    schema = {"$ref": "#/$defs/A", "required": ["y"], "$defs": {"A": OBJECT}}
    old = {**schema, "$schema": "http://json-schema.org/draft-07/schema#"}
    assert (fault_of({"x": 1}, old), accepts(held(old).schema, '{"x":1}')) == (None, True)
    assert fault_of({"x": 1}, schema) is not None
    assert not accepts(held(schema).schema, '{"x":1}')


def test_a_property_that_two_recursive_schemas_describe() -> None:
    def child(name: str) -> dict[str, Any]:
        return {"child": {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}}

    schema = {
        "$ref": "#/$defs/Derived",
        "$defs": {
            "Base": {"type": "object", "properties": {"b": {"type": "integer"}, **child("Base")}, "required": ["b"]},
            "Derived": {"allOf": [{"$ref": "#/$defs/Base"}, {"properties": {**child("Derived"), "d": {}}, "required": ["d"]}]},
        },
    }  # fmt: skip
    found = held(schema)
    assert not found.unenforced
    assert accepts(found.schema, '{"b":1,"child":{"b":2,"child":null,"d":3},"d":4}')
    assert not accepts(found.schema, '{"b":1,"child":{"b":2},"d":4}')
    assert not accepts(found.schema, '{"b":1,"d":4,"e":5}')


def test_arguments_are_an_object() -> None:
    with pytest.raises(InvalidOptionError, match="tool f: arguments are an object"):
        unenforced([Tool("f", "", {"type": "string"})], None)
    assert unenforced([Tool("f", "", {"type": ["object", "null"]})], None) == []


def test_annotations_may_be_anything() -> None:
    schema = {
        "type": "object",
        "title": 5,
        "description": None,
        "properties": {"a": {"examples": "x", "discriminator": 1}},
    }
    assert held(schema).unenforced == ()


MANY = [{"type": "string", "pattern": f"^{sign}"} for sign in "abcdefghi"]
TOGETHER: dict[str, dict[str, Any]] = {
    "in place": {"allOf": MANY},
    "of a property": {"allOf": [{"properties": {"x": own}} for own in MANY]},
    "of further properties": {"allOf": [{"properties": {"x": {}}}, *({"additionalProperties": own} for own in MANY)]},
    "of patterns of names": {"properties": {"x": MANY[0]}, "patternProperties": {f"a{at}": own for at, own in enumerate(MANY[1:])}},
    "of items": {"allOf": [{"items": own} for own in MANY]},
    "of definitions": {
        "allOf": [{"$ref": f"#/$defs/{at}"} for at in range(9)], "$defs": {str(at): own for at, own in enumerate(MANY)},
    },
    "of alternatives": {"allOf": [{"anyOf": [own, {"type": "null"}]} for own in MANY]},
}  # fmt: skip


@pytest.mark.parametrize("schema", TOGETHER.values(), ids=list(TOGETHER))
def test_llguidance_is_not_asked_for_many_expressions_at_once(
    schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert most_together(schema) == 9
    monkeypatch.setattr(trial, "LLMatcher", None)
    assert "9 expressions hold together" in str(problem(schema))


def test_expressions_that_do_not_hold_together_are_many() -> None:
    apart = {"properties": {str(at): own for at, own in enumerate(MANY)}, "anyOf": MANY}
    assert most_together(apart) == 1
    assert most_together({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}, "pattern": "a"}}}) == 1


def test_schemas_that_multiply_are_not_counted_to_the_end() -> None:
    wide = {"allOf": [{"properties": {str(name): {} for name in range(1000)}} for _ in range(60)]}
    assert problem(wide) == "its parts multiply"


@pytest.mark.parametrize("kind", ["alternatives", "repetitions"])
def test_a_check_takes_no_longer_than_it_may(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_check, "MAX_WORK_S", 0.05)
    schema: dict[str, Any] = {"type": "array", "uniqueItems": True}
    if kind == "alternatives":
        schema = chain(30, lambda inner: {"oneOf": [inner, inner]}, {"type": "integer"})
    value: Any = "a" if kind == "alternatives" else [{"a": [own]} for own in range(3000)]
    with for_others():  # these tests may be traced for their coverage
        assert "was not decided within 0.05 s of work" in str(fault_of(value, schema))
