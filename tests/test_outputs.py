"""Outputs do their sums."""

from __future__ import annotations

from eft_engine.outputs import PairScore, RequestMetrics, ScoreOutput, TokenScore, Usage


def test_usage_adds_up() -> None:
    assert Usage(3, 4).total_tokens == 7


def test_rates_of_an_empty_request_are_zero() -> None:
    metrics = RequestMetrics(queue_s=0.0, ttft_s=1.0, tpot_s=0.0, total_s=1.0, num_forwards={})
    assert (metrics.tokens_per_s, metrics.acceptance_rate, metrics.mean_acceptance_length) == (0.0, 0.0, 0.0)


def test_rates_are_quotients() -> None:
    metrics = RequestMetrics(0.0, 1.0, 0.25, 2.0, {}, num_drafted=8, num_accepted=6, num_steps=3)
    assert (metrics.tokens_per_s, metrics.acceptance_rate, metrics.mean_acceptance_length) == (4.0, 0.75, 3.0)


def test_scores_sum_over_tokens() -> None:
    tokens = tuple(TokenScore(i, "x", -1.0, -0.5, {"chat": PairScore(-1.0, -3.0)}) for i in range(3))
    scores = ScoreOutput(tokens, {"chat": 1.0})
    assert (scores.base, scores.composed, scores.reward("chat")) == (-3.0, -1.5, 6.0)
