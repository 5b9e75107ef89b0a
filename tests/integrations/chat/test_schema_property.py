"""Whatever a grammar lets a model write fits the schema as the user gave it, but for what is reported as unenforced."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eft_integrations.chat.schema import Unenforced, held
from eft_integrations.chat.schema_check import fault_of
from eft_integrations.chat.schemas.trial import problem
from tests.integrations.chat.sentences import sentence

NAMES = ("a", "b", "c", "kind")
DEFINITIONS = ("D0", "D1", "D2")
VALUES = st.sampled_from([None, True, 0, 1, -3, 2.5, "", "a", "bc", [1], {"a": 1}, {"b": "x", "c": None}])
SCALARS = st.one_of(
    st.builds(
        lambda low, span, more: {"type": "integer", "minimum": low, "maximum": low + span} | more,
        st.integers(-50, 50),
        st.integers(0, 60),
        st.sampled_from([{}, {"multipleOf": 3}, {"exclusiveMinimum": -20}]),
    ),
    st.sampled_from(
        [
            {"type": "number", "exclusiveMinimum": 0, "maximum": 10}, {"type": "number", "multipleOf": 0.25}, {"type": "boolean"},
            {"type": "null"}, {"type": ["string", "null"], "maxLength": 3}, {"type": "string", "minLength": 2, "maxLength": 5},
            {"type": "string", "pattern": "^[a-c]+$"}, {"type": "string", "pattern": "b"}, {"type": "string", "pattern": "^(?=a)"},
            {"type": "string", "format": "date"}, {"type": "string", "format": "uuid"}, {"type": "string", "format": "unheard-of"},
            {"minimum": 3, "maxLength": 2}, {}, True, {"type": "string", "contentEncoding": "base64"},
        ]
    ),
    st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=4)),
    st.builds(lambda value: {"const": value}, VALUES),
    st.builds(lambda name: {"$ref": f"#/$defs/{name}"}, st.sampled_from(DEFINITIONS)),
)  # fmt: skip


def _arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {"type": st.just("array")},
        optional={
            "items": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(1, 3),
            "uniqueItems": st.booleans(),
            "contains": inner,
            "unevaluatedItems": st.one_of(st.just(False), inner),
        },
    )


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.lists(st.sampled_from(NAMES), max_size=3, unique=True)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.just("object"),
            "properties": st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
            "required": names,
            "additionalProperties": st.one_of(st.booleans(), inner),
            "unevaluatedProperties": st.one_of(st.booleans(), inner),
            "patternProperties": st.dictionaries(st.sampled_from(["^x", "^y", "b"]), inner, max_size=2),
            "propertyNames": st.sampled_from(
                [{"enum": ["a", "b"]}, {"pattern": "^[ab]"}, {"maxLength": 2}, {"format": "x"}]
            ),
            "minProperties": st.integers(0, 3),
            "maxProperties": st.integers(1, 3),
            "dependentRequired": st.just({"a": ["b"]}),
            "if": st.just({"required": ["a"]}),
            "then": inner,
            "not": st.just({"required": ["kind"]}),
        },
    )


def _compositions(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    branches = st.lists(inner, min_size=1, max_size=3)
    own = st.fixed_dictionaries(
        {},
        optional={
            "$ref": st.sampled_from([f"#/$defs/{name}" for name in DEFINITIONS]),
            "allOf": branches,
            "anyOf": branches,
            "oneOf": branches,
            "discriminator": st.just({"propertyName": "kind"}),
        },
    )
    return st.builds(lambda first, second: {**first, **second}, own, st.one_of(st.just({}), _objects(inner)))


SCHEMAS = st.recursive(
    SCALARS, lambda inner: st.one_of(_arrays(inner), _objects(inner), _compositions(inner)), max_leaves=8
)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A schema with definitions that refer to each other."""
    root = draw(st.one_of(_objects(SCHEMAS), _compositions(SCHEMAS)))
    return {**root, "$defs": {name: draw(SCHEMAS) for name in DEFINITIONS}}


def without(schema: dict[str, Any], reported: tuple[Unenforced, ...]) -> dict[str, Any]:
    """The schema without the keywords that nobody holds."""
    weaker = copy.deepcopy(schema)
    for own in sorted(reported, key=lambda own: -len(own.at)):
        node: Any = weaker
        for part in own.at.split("/")[1:]:
            node = node[int(part) if isinstance(node, list) else part.replace("~1", "/").replace("~0", "~")]
        if isinstance(node, dict):
            node.pop(own.keyword, None)
    return weaker


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(documents(), st.integers(0, 2**32))
def test_what_a_grammar_lets_through_fits_the_schema(schema: dict[str, Any], seed: int) -> None:
    found = held(schema)
    assert problem(found.schema) is None
    if Unenforced("", "false") in found.unenforced:  # no value fits
        return
    weaker = without(schema, found.unenforced)
    draw = random.Random(seed)
    for _ in range(4):
        text = sentence(found.schema, draw, max_len=200)
        if text is not None:
            assert fault_of(json.loads(text), weaker) is None, (text, found.schema, found.unenforced)
