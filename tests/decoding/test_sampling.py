"""Warping as transformers does it, and draws that are exactly distributed and repeatable."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from scipy import stats
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from eft_engine import SamplingParams
from eft_engine.decoding.sampling import History, choose, draw, needs_penalties, penalise, uniform, warp

MIXES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7, "top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    {"top_k": 1000},
    {"top_k": 1},
    {"top_p": 0.01},
]
FALSE_ALARM = 1e-6


def theirs(scores: torch.Tensor, mix: dict[str, Any]) -> torch.Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(mix.get("temperature", 1.0)))])
    if "top_k" in mix:
        warpers.append(TopKLogitsWarper(mix["top_k"]))
    if "top_p" in mix:
        warpers.append(TopPLogitsWarper(mix["top_p"]))
    if "min_p" in mix:
        warpers.append(MinPLogitsWarper(mix["min_p"]))
    return warpers(None, scores).softmax(dim=-1)


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_warping_equals_that_of_transformers(mix: dict[str, Any]) -> None:
    scores = torch.randn(20, 40) * 3
    assert torch.allclose(warp(scores, [SamplingParams(**mix)] * 20), theirs(scores, mix), atol=1e-6)


def test_rows_of_one_batch_are_warped_each_by_its_own_parameters() -> None:
    scores = torch.randn(len(MIXES) + 1, 40) * 3
    params = [SamplingParams(**mix) for mix in [*MIXES, {"temperature": 0.0, "top_k": 3}]]
    together = warp(scores, params)
    for row, own in enumerate(params):
        assert torch.allclose(together[row], warp(scores[row : row + 1], [own])[0], atol=1e-7)


def test_temperature_zero_is_exactly_one_hot() -> None:
    scores = torch.randn(5, 9)
    probs = warp(scores, [SamplingParams(temperature=0.0)] * 5)
    assert torch.equal(probs, torch.nn.functional.one_hot(scores.argmax(dim=-1), 9).float())


def test_repetition_penalty_equals_that_of_transformers() -> None:
    scores, seen = torch.randn(1, 20) * 2, [3, 5, 7]
    expected = RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([seen]), scores.clone())
    ours = scores[0].clone()
    penalise(ours, SamplingParams(repetition_penalty=1.5), History(seen[:2], {7: 1, 3: 2}))
    assert torch.allclose(ours, expected[0])


def test_presence_frequency_and_bias_are_added_as_documented() -> None:
    scores = torch.zeros(6)
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25, logit_bias={0: 2.0, 1: -1.0, 99: 5.0})
    penalise(scores, params, History([5], {1: 3, 2: 1}))
    assert scores.tolist() == [2.0, -2.25, -0.75, 0.0, 0.0, 0.0]
    assert needs_penalties(params)
    assert not needs_penalties(SamplingParams(temperature=0.3, top_p=0.5))


def test_ids_outside_the_vocabulary_are_ignored() -> None:
    scores = torch.ones(3)
    penalise(scores, SamplingParams(repetition_penalty=2.0), History([1, 50], {}))
    assert scores.tolist() == [1.0, 0.5, 1.0]


@pytest.mark.parametrize("number", [0.0, 0.5, 1.0 - 2**-53])
def test_a_token_of_probability_zero_is_never_drawn(number: float) -> None:
    probs = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]])
    assert draw(probs, [number]).item() in (1, 3)


def test_draws_follow_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.25, 0.0, 0.2, 0.05])
    draws = 20_000
    numbers = [uniform(seed=9, position=index, salt=0) for index in range(draws)]
    counts = Counter(draw(probs.expand(draws, -1), numbers).tolist())
    possible = [0, 1, 3, 4]
    assert set(counts) == set(possible)
    test = stats.chisquare([counts[token] for token in possible], [draws * float(probs[token]) for token in possible])
    assert test.pvalue > FALSE_ALARM


def test_uniform_numbers_are_uniform_and_depend_on_their_key_alone() -> None:
    numbers = [uniform(seed, position, salt) for seed in range(20) for position in range(50) for salt in range(2)]
    assert len(set(numbers)) == len(numbers)
    assert all(0.0 <= number < 1.0 for number in numbers)
    assert stats.kstest(numbers, "uniform").pvalue > FALSE_ALARM
    assert uniform(2**64 - 1, 3, 0) == uniform(2**64 - 1, 3, 0)


def test_choosing_is_drawing_from_the_warped_rows() -> None:
    scores = torch.randn(30, 12) * 2
    params = [SamplingParams(temperature=[0.0, 0.7, 1.0][row % 3], top_k=row % 4) for row in range(30)]
    numbers = [uniform(1, row, 0) for row in range(30)]
    assert torch.equal(choose(scores, params, numbers), draw(warp(scores, params), numbers))
