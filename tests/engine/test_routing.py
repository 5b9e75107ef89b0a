"""Which members run, and with which coefficients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from eft_engine import CompositionOptions, Engine, LoadedPair
from eft_engine.config import resolve_weights
from eft_engine.engine.routing import plan_route
from eft_engine.errors import InvalidOptionError, InvalidWeightError, UnknownPairError
from eft_engine.text.prompt import RenderedPrompt
from tests.toy import make_model, make_tokenizer

OWN = {"a": 1.0, "b": 0.5}
PROMPT = RenderedPrompt((1, 2), (1, 2), (1, 2))
PLAIN = CompositionOptions()


@pytest.mark.parametrize(
    ("given", "effective"),
    [
        (None, OWN),
        (0.0, {"a": 0.0, "b": 0.0}),
        (2, {"a": 2.0, "b": 2.0}),
        ({"b": -1.0}, {"a": 1.0, "b": -1.0}),
        ({}, OWN),
    ],
)
def test_weights_resolve(given: Any, effective: dict[str, float]) -> None:
    assert resolve_weights(given, OWN) == effective


@pytest.mark.parametrize("weight", [math.nan, math.inf, True, "1"])
def test_weight_that_is_no_finite_number_is_refused(weight: Any) -> None:
    for given in (weight, {"a": weight}):
        with pytest.raises(InvalidWeightError) as caught:
            resolve_weights(given, OWN)
        assert caught.value.value is weight


def test_unknown_pair_names_the_known_ones() -> None:
    with pytest.raises(UnknownPairError, match="no pair 'c'; this engine has 'a', 'b'") as caught:
        resolve_weights({"c": 1.0}, OWN)
    assert caught.value.known == ("a", "b")
    with pytest.raises(UnknownPairError, match="this engine has no pairs"):
        resolve_weights({"c": 1.0}, {})


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A base that is also the reference of both of its pairs."""
    base, tuned_a, tuned_b = (make_model("llama", seed=seed) for seed in range(3))
    pairs = {"a": LoadedPair(tuned_a, base), "b": LoadedPair(tuned_b, base)}
    with Engine.from_models(base, tokenizer=make_tokenizer(), pairs=pairs) as engine:
        yield engine


@pytest.mark.parametrize(
    ("weights", "members", "coefficients"),
    [
        ((0.0, 0.0), [(0, 2, 4)], (1.0, 0.0, 0.0, 0.0, 0.0)),
        ((1.0, 0.0), [(1,)], (0.0, 1.0, 0.0, 0.0, 0.0)),
        ((0.5, 0.0), [(0, 2, 4), (1,)], (0.5, 0.5, 0.0, 0.0, 0.0)),
        ((0.5, 0.5), [(1,), (3,)], (0.0, 0.5, 0.0, 0.5, 0.0)),
        ((2.0, -1.0), [(1,), (3,)], (0.0, 2.0, 0.0, -1.0, 0.0)),
    ],
)
def test_streams_that_cancel_out_are_not_run(
    engine: Engine, weights: tuple[float, float], members: list[tuple[int, ...]], coefficients: tuple[float, ...]
) -> None:
    route = plan_route(engine._trio, PROMPT, dict(zip("ab", weights, strict=True)), PLAIN)
    assert [stream.members for stream in route.streams] == members
    assert route.coefficients == coefficients


def test_scoring_runs_everyone(engine: Engine) -> None:
    route = plan_route(engine._trio, PROMPT, {"a": 0.0, "b": 0.0}, PLAIN, always=range(5))
    assert [stream.members for stream in route.streams] == [(0, 2, 4), (1,), (3,)]


def test_own_prompts_are_own_streams(engine: Engine) -> None:
    prompt = RenderedPrompt((9,), (1, 2), (1, 2))
    route = plan_route(engine._trio, prompt, {"a": 1.0, "b": 0.0}, PLAIN)
    assert [(stream.members, stream.prompt_ids) for stream in route.streams] == [
        ((0,), (9,)),
        ((1,), (1, 2)),
        ((2, 4), (1, 2)),
    ]


def test_when_everything_cancels_the_base_carries_the_uniform_distribution(engine: Engine) -> None:
    options = CompositionOptions(amplification=0.0)
    route = plan_route(engine._trio, PROMPT, {"a": 1.0, "b": 0.0}, options)
    assert [stream.members for stream in route.streams] == [(1,)]
    nothing = plan_route(engine._trio, RenderedPrompt((9,), (9,), (9,)), {"a": 0.0, "b": 0.0}, options)
    assert [stream.members for stream in nothing.streams] == [(0, 2, 4)]


def test_conservative_mode_needs_one_active_pair(engine: Engine) -> None:
    conservative = CompositionOptions(conservative_top_p=0.9)
    with pytest.raises(InvalidOptionError, match="exactly one pair"):
        plan_route(engine._trio, PROMPT, {"a": 1.0, "b": 0.5}, conservative)
    assert plan_route(engine._trio, PROMPT, {"a": 0.0, "b": 0.0}, conservative).streams
