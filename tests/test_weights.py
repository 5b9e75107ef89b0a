"""Weights that follow the token: what they can be, how they are written, and which of them hold."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from eft_engine import (
    Between,
    FirstTokens,
    FromMarker,
    Gate,
    InJsonStrings,
    LinearRamp,
    Proportional,
    TunedPair,
    Weight,
)
from eft_engine.errors import InvalidWeightError, UnknownPairError
from eft_engine.weights import (
    KINDS,
    MAX_NESTING,
    SCHEDULES,
    as_json,
    is_off,
    is_schedule,
    numbers_of,
    parts,
    peak,
    resolve_weights,
    weights_as_json,
)

OWN: dict[str, Weight] = {"a": 1.0, "b": 0.5}
ANY_WEIGHT: TypeAdapter[Any] = TypeAdapter(Weight)
GATE = {"kind": "gate", "by": "kl", "above": 0.1}

ONE_OF_EACH: list[Any] = [
    LinearRamp(start=2.0, end=-1.0, num_tokens=8),
    FirstTokens(num_tokens=3, weight=2.0, then=Gate(by="base_entropy", above=1.0, below=2.5)),
    FromMarker(marker="</think>", weight=0.5, before=-0.5),
    Between(opening="<think>", closing="</think>", weight=0.0, outside=1.0, starts_inside=True),
    InJsonStrings(weight=Proportional(factor=-2.0, most=0.5), keys=True),
    Gate(by="kl", below=0.1, weight=1.5, otherwise=-0.25),
    Proportional(to="total_variation", factor=2.0, most=1.5),
]
NUMBERS = st.floats(-5, 5)
WEIGHTS = st.recursive(
    st.one_of(NUMBERS, st.sampled_from(ONE_OF_EACH)),
    lambda inner: st.one_of(
        st.builds(FirstTokens, num_tokens=st.integers(1, 9), weight=inner, then=inner),
        st.builds(InJsonStrings, weight=inner, outside=inner),
    ),
    max_leaves=4,
)


def nested(depth: int) -> dict[str, Any]:
    weight: dict[str, Any] = {"kind": "linear_ramp"}
    for _ in range(depth - 1):
        weight = {"kind": "first_tokens", "num_tokens": 2, "weight": 0.5, "then": weight}
    return weight


# ---- how they are written ----------------------------------------------------------------------------------------------


def test_every_kind_is_tried_here() -> None:
    assert {type(weight) for weight in ONE_OF_EACH} == set(SCHEDULES)
    assert {weight.kind for weight in ONE_OF_EACH} == set(KINDS)


@given(WEIGHTS)
def test_weights_survive_json(weight: Weight) -> None:
    written = json.loads(json.dumps(as_json(weight), allow_nan=False))
    assert ANY_WEIGHT.validate_python(written) == weight
    assert resolve_weights({"a": written}, {"a": 0.0}) == {"a": weight}


def test_weights_by_name_are_written_by_name() -> None:
    written = weights_as_json({"a": 1, "b": Gate(by="kl", above=0.1)})
    assert written == {"a": 1.0, "b": {**GATE, "weight": 1.0, "otherwise": 0.0}}


def test_a_pair_with_a_schedule_survives_json() -> None:
    pair = TunedPair("a", "b", weight=ONE_OF_EACH[1])
    assert TunedPair.model_validate_json(pair.model_dump_json()) == pair


def test_there_is_a_json_schema_that_names_every_kind() -> None:
    schema = json.dumps(ANY_WEIGHT.json_schema())
    assert all(f'"{kind}"' in schema for kind in KINDS)
    assert "number" in schema


@pytest.mark.parametrize("weight", ONE_OF_EACH, ids=lambda weight: weight.kind)
def test_a_schedule_is_a_value_that_can_be_a_key(weight: Weight) -> None:
    again = ANY_WEIGHT.validate_python(as_json(weight))
    assert (again == weight, hash(again) == hash(weight), again is weight) == (True, True, False)


@pytest.mark.parametrize(
    ("value", "found"),
    [(LinearRamp(), True), (GATE, True), ({"kind": "no such"}, True), ({"a": 1.0}, False), ({"kind": 1.0}, False)],
)
def test_a_mapping_with_a_kind_is_a_schedule_and_any_other_is_by_name(value: Any, found: bool) -> None:
    """A pair may be called kind."""
    assert is_schedule(value) is found
    assert resolve_weights({"kind": 1.0}, {"kind": 0.0, "b": 0.0}) == {"kind": 1.0, "b": 0.0}


# ---- what they can be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "numbers", "most"),
    [
        (0.5, [0.5], 0.5),
        (LinearRamp(start=0.5, end=-2.0), [0.5, -2.0], -2.0),
        (FirstTokens(num_tokens=1, weight=3.0, then=LinearRamp(start=0.0, end=1.0)), [3.0, 0.0, 1.0], 3.0),
        (Gate(by="kl", above=0.0, weight=-1.5, otherwise=0.5), [-1.5, 0.5], -1.5),
        (Proportional(factor=-3.0, most=0.75), [-0.75, 0.0], -0.75),
        (Between(opening="a", closing="b", weight=0.0, outside=0.25), [0.0, 0.25], 0.25),
        (FromMarker(marker="a", weight=2.0, before=-1.0), [2.0, -1.0], 2.0),
        (InJsonStrings(weight=FirstTokens(num_tokens=1, weight=4.0, then=0.0), outside=1.0), [4.0, 0.0, 1.0], 4.0),
    ],
)
def test_numbers_that_a_weight_can_be(weight: Weight, numbers: list[float], most: float) -> None:
    assert sorted(set(numbers_of(weight))) == sorted(set(numbers))
    assert peak(weight) == most


@pytest.mark.parametrize(
    ("weight", "off"),
    [
        (0.0, True),
        (-0.0, True),
        (1e-9, False),
        (LinearRamp(start=0.0, end=0.0), True),
        (Gate(by="kl", above=1.0, weight=0.0), True),
        (Gate(by="kl", above=1.0), False),
        (Proportional(), False),
        (FirstTokens(num_tokens=1, weight=0.0, then=InJsonStrings(weight=0.0)), True),
        (FirstTokens(num_tokens=1, weight=0.0, then=InJsonStrings(weight=0.0, outside=0.1)), False),
    ],
)
def test_a_weight_is_off_where_it_is_zero_for_every_token(weight: Weight, off: bool) -> None:
    assert is_off(weight) is off


def test_proportional_to_nothing_is_off() -> None:
    assert is_off(Proportional(factor=0.0))


def test_parts_are_all_weights_inside() -> None:
    inner = InJsonStrings(weight=LinearRamp(), outside=0.25)
    weight = FirstTokens(num_tokens=2, weight=inner, then=0.5)
    assert list(parts(weight)) == [weight, inner, LinearRamp(), 0.25, 0.5]


# ---- which of them hold ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "effective"),
    [
        (None, OWN),
        (0.0, {"a": 0.0, "b": 0.0}),
        (2, {"a": 2.0, "b": 2.0}),
        ({"b": -1.0}, {"a": 1.0, "b": -1.0}),
        ({}, OWN),
        (LinearRamp(), {"a": LinearRamp(), "b": LinearRamp()}),
        (GATE, {"a": Gate(by="kl", above=0.1), "b": Gate(by="kl", above=0.1)}),
        ({"a": GATE}, {"a": Gate(by="kl", above=0.1), "b": 0.5}),
    ],
)
def test_weights_resolve(given: Any, effective: dict[str, Weight]) -> None:
    assert resolve_weights(given, OWN) == effective


def test_numbers_resolve_to_floats() -> None:
    assert [type(weight) for weight in resolve_weights(2, OWN).values()] == [float, float]


@pytest.mark.parametrize("weight", [math.nan, math.inf, True, "1", None, [1.0]])
def test_weight_that_is_no_finite_number_is_refused(weight: Any) -> None:
    for wrong in [{"a": weight}] if weight is None else [weight, {"a": weight}]:
        with pytest.raises(InvalidWeightError, match="must be a finite number or a schedule") as caught:
            resolve_weights(wrong, OWN)
        assert caught.value.value is weight


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        ({"kind": "gate", "by": "kl"}, "needs a bound"),
        ({"kind": "constant"}, "kind"),
        ({"kind": "gate", "by": "mood", "above": 1}, "Gate.by"),
        ({"kind": "first_tokens", "weight": 1.0}, "FirstTokens.num_tokens"),
        ({"kind": "first_tokens", "num_tokens": 1, "then": {"kind": "linear_ramp", "end": math.nan}}, "LinearRamp.end"),
        ({"kind": "linear_ramp", "slope": 1}, "no option 'slope'"),
    ],
)
def test_a_wrong_schedule_is_refused_in_its_own_words(weight: dict[str, Any], says: str) -> None:
    for wrong, whose in ((weight, "every pair"), ({"b": weight}, "pair 'b'")):
        with pytest.raises(InvalidWeightError, match=says) as caught:
            resolve_weights(wrong, OWN)
        assert str(caught.value).startswith(f"the weight of {whose}")
        assert caught.value.value == weight


def test_schedules_inside_of_each_other_are_bounded() -> None:
    (weight,) = resolve_weights(nested(MAX_NESTING), {"a": 0.0}).values()
    assert is_schedule(weight)
    with pytest.raises(InvalidWeightError, match=f"more than {MAX_NESTING} schedules inside of each other"):
        resolve_weights(nested(MAX_NESTING + 1), {"a": 0.0})


def test_unknown_pair_names_the_known_ones() -> None:
    with pytest.raises(UnknownPairError, match="no pair 'c'; this engine has 'a', 'b'") as caught:
        resolve_weights({"c": 1.0}, OWN)
    assert caught.value.known == ("a", "b")
    with pytest.raises(UnknownPairError, match="this engine has no pairs"):
        resolve_weights({"c": 1.0}, {})
    with pytest.raises(UnknownPairError, match="this alias has 'a', 'b'"):
        resolve_weights({"c": GATE}, OWN, owner="this alias")
