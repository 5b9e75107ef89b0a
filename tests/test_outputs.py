"""Outputs do their sums, and are plain data that can be kept and sent on."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import pickle

import pytest

from eft_engine import outputs
from eft_engine.outputs import (
    PairScore,
    RequestMetrics,
    RequestOutput,
    ScoreOutput,
    TokenLogprobs,
    TokenScore,
    TopToken,
    Usage,
)

METRICS = RequestMetrics(0.0, 1.0, 0.25, 2.0, {"base": 3}, num_drafted=8, num_accepted=6, num_steps=3)
OUTPUT = RequestOutput(
    request_id="r1",
    text="Hi",
    token_ids=(72, 105),
    finish_reason="length",
    stop_reason=None,
    usage=Usage(prompt_tokens=3, completion_tokens=2),
    metrics=METRICS,
    reward_weights={"chat": 1.0},
    logprobs=(TokenLogprobs(72, "H", -0.5, (TopToken(72, "H", -0.5),), {"base": -1.0}),),
)


def test_usage_adds_up() -> None:
    assert Usage(prompt_tokens=3, completion_tokens=4, cached_prompt_tokens=2).total_tokens == 7


@pytest.mark.parametrize(("tpot_s", "tokens_per_s"), [(0.25, 4.0), (2.0, 0.5), (0.0, 0.0)])
def test_speed_is_one_over_the_time_per_token(tpot_s: float, tokens_per_s: float) -> None:
    assert dataclasses.replace(METRICS, tpot_s=tpot_s).tokens_per_s == tokens_per_s


@pytest.mark.parametrize(
    ("drafted", "accepted", "steps", "rate", "length"),
    [(8, 6, 3, 0.75, 3.0), (8, 0, 4, 0.0, 1.0), (0, 0, 4, 0.0, 1.0), (0, 0, 0, 0.0, 0.0)],
)
def test_acceptance_is_counted_per_draft_and_per_step(
    drafted: int, accepted: int, steps: int, rate: float, length: float
) -> None:
    metrics = dataclasses.replace(METRICS, num_drafted=drafted, num_accepted=accepted, num_steps=steps)
    assert (metrics.acceptance_rate, metrics.mean_acceptance_length) == (rate, length)


@pytest.mark.parametrize(
    ("tuned", "reference", "delta"), [(-1.0, -3.0, 2.0), (-3.0, -1.0, -2.0), (-1.0, -math.inf, 0.0)]
)
def test_delta_is_tuned_minus_reference(tuned: float, reference: float, delta: float) -> None:
    assert PairScore(tuned, reference).delta == delta


def test_scores_sum_over_tokens_and_rewards_per_pair() -> None:
    tokens = (
        TokenScore(1, "a", -1.0, -0.5, {"chat": PairScore(-1.0, -3.0), "json": PairScore(-2.0, -1.0)}),
        TokenScore(2, "b", -4.0, -0.25, {"chat": PairScore(-5.0, -4.0), "json": PairScore(-1.0, -0.5)}),
    )
    scores = ScoreOutput(tokens, {"chat": 1.0, "json": 0.0})
    assert (scores.base, scores.composed) == (-5.0, -0.75)
    assert (scores.reward("chat"), scores.reward("json")) == (1.0, -1.5)
    with pytest.raises(KeyError, match="other"):
        scores.reward("other")


def test_score_of_nothing_is_zero() -> None:
    scores = ScoreOutput((), {})
    assert (scores.base, scores.composed, scores.reward("chat"), scores.intervention_rate) == (0, 0, 0, 0)


def test_a_term_has_no_reference_and_rewards_what_it_likes() -> None:
    assert PairScore(-2.0).delta == -2.0
    assert ScoreOutput((TokenScore(1, "a", -1.0, -0.5, {"safe": PairScore(-2.0)}),), {}).reward("safe") == -2.0


def test_tokens_are_steered_where_some_weight_is_not_zero() -> None:
    weights = [{"chat": 0.0, "json": 0.0}, {"chat": 0.0, "json": -0.5}, {}, {"chat": 1.0, "json": 0.0}]
    tokens = tuple(TokenScore(1, "a", -1.0, -0.5, {}, weights=own) for own in weights)
    assert [token.is_steered for token in tokens] == [False, True, False, True]
    assert ScoreOutput(tokens, {}).intervention_rate == 0.5


def test_every_output_is_a_frozen_dataclass() -> None:
    classes = [kind for _, kind in inspect.getmembers(outputs, dataclasses.is_dataclass)]
    assert {kind.__name__ for kind in classes} >= {"RequestOutput", "GenerationDelta", "ScoreOutput", "TrioReport"}
    for kind in classes:
        made = kind.__new__(kind)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, dataclasses.fields(kind)[0].name, None)


def test_an_answer_can_be_pickled_and_written_as_json() -> None:
    assert pickle.loads(pickle.dumps(OUTPUT)) == OUTPUT
    written = json.loads(json.dumps(dataclasses.asdict(OUTPUT)))
    assert written["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "cached_prompt_tokens": 0,
        "reasoning_tokens": 0,
    }
    assert written["closed_within_budget"] is False
    assert written["logprobs"][0]["top"] == [{"token_id": 72, "token": "H", "logprob": -0.5, "utf8": None}]
