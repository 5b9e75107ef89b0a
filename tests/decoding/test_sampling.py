"""Warping as transformers does it, and draws that are exactly distributed and repeatable."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from eft_engine import SamplingParams
from eft_engine.decoding.races import race_times
from eft_engine.decoding.sampling import History, choose, draw, needs_penalties, penalise, warp

MIXES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7, "top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.3, "top_p": 0.5, "min_p": 0.3},
    {"top_k": 1000},
    {"top_k": 1},
    {"top_p": 0.01},
    {"top_k": 3, "top_p": 0.99},
]
FALSE_ALARM = 1e-6
"""Probability with which a correct program would fail each of the statistical tests, were the seed not fixed."""


def theirs(scores: Tensor, mix: dict[str, Any]) -> Tensor:
    """The warpers of transformers, chained in our order."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(mix.get("temperature", 1.0)))])
    if "top_k" in mix:
        warpers.append(TopKLogitsWarper(mix["top_k"]))
    if "top_p" in mix:
        warpers.append(TopPLogitsWarper(mix["top_p"]))
    if "min_p" in mix:
        warpers.append(MinPLogitsWarper(mix["min_p"]))
    return warpers(None, scores).softmax(dim=-1)


# ---- temperature and filters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forbidden", [0, 10], ids=["all possible", "some forbidden"])
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_warping_equals_that_of_transformers(mix: dict[str, Any], forbidden: int) -> None:
    scores = torch.randn(50, 40) * 3
    scores[:, :forbidden] = -torch.inf
    probs = warp(scores, [SamplingParams(**mix)] * 50)
    torch.testing.assert_close(probs, theirs(scores, mix), atol=1e-6, rtol=1e-5)
    assert torch.equal(probs > 0, theirs(scores, mix) > 0)


def test_rows_of_one_batch_are_warped_each_by_its_own_parameters() -> None:
    scores = torch.randn(len(MIXES) + 1, 40) * 3
    params = [SamplingParams(**mix) for mix in [*MIXES, {"temperature": 0.0, "top_k": 3}]]
    together = warp(scores, params)
    alone = torch.cat([warp(scores[row : row + 1], [own]) for row, own in enumerate(params)])
    torch.testing.assert_close(together, alone, atol=1e-7, rtol=1e-6)
    assert torch.equal(together > 0, alone > 0)


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-42, 1e-30, 1e-5])
def test_no_temperature_is_too_low(temperature: float) -> None:
    scores = torch.tensor([[-30.0, -10.0, -20.0, -torch.inf], [3.0, 1.0, -torch.inf, 2.0]])
    probs = warp(scores, [SamplingParams(temperature=temperature)] * 2)
    assert probs.tolist() == [[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("temperature", [1e20, 1e39, 1e300])
def test_no_temperature_is_too_high(temperature: float) -> None:
    probs = warp(torch.tensor([[-30.0, 10.0, -torch.inf]]), [SamplingParams(temperature=temperature)])
    assert probs.tolist() == [[0.5, 0.5, 0.0]]


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.5, "min_p": 0.1}], ids=str)
def test_temperature_zero_is_exactly_one_hot(filters: dict[str, Any]) -> None:
    scores = torch.randn(5, 9)
    probs = warp(scores, [SamplingParams(temperature=0.0, **filters)] * 5)
    assert torch.equal(probs, one_hot(scores.argmax(dim=-1), 9).float())


def test_scores_that_are_warped_stay_as_they_were() -> None:
    scores = torch.randn(len(MIXES), 20)
    before = scores.clone()
    warp(scores, [SamplingParams(**mix) for mix in MIXES])
    assert torch.equal(scores, before)


# ---- penalties ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.5, 3.0])
def test_repetition_penalty_equals_that_of_transformers(penalty: float) -> None:
    scores, seen = torch.randn(1, 20) * 2, [3, 5, 7, 5]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), scores.clone())
    ours = scores[0].clone()
    penalise(
        ours, SamplingParams(repetition_penalty=penalty), History(prompt_ids=[5, 3, 5], output_counts={7: 1, 3: 2})
    )
    torch.testing.assert_close(ours, expected[0])


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"presence_penalty": 0.5}, [1.0, 0.5, 0.5, 1.0]),
        ({"frequency_penalty": 0.25}, [1.0, 0.25, 0.75, 1.0]),
        ({"presence_penalty": -0.5, "frequency_penalty": 0.25}, [1.0, 0.75, 1.25, 1.0]),
        ({"logit_bias": {0: 2.0, 3: -1.0}}, [3.0, 1.0, 1.0, 0.0]),
        ({"logit_bias": {2: -float("inf")}}, [1.0, 1.0, -float("inf"), 1.0]),
        ({"repetition_penalty": 2.0}, [1.0, 0.5, 0.5, 0.5]),
        ({"repetition_penalty": 2.0, "presence_penalty": 0.5, "logit_bias": {1: 4.0}}, [1.0, 4.0, 0.0, 0.5]),
    ],
    ids=str,
)
def test_penalties_are_those_worked_out_by_hand(params: dict[str, Any], expected: list[float]) -> None:
    """The prompt was token 3; token 1 was generated three times, token 2 once."""
    scores = torch.ones(4)
    penalise(scores, SamplingParams(**params), History(prompt_ids=[3], output_counts={1: 3, 2: 1}))
    assert scores.tolist() == expected
    assert needs_penalties(SamplingParams(**params))


@pytest.mark.parametrize("params", [{}, {"temperature": 0.3, "top_p": 0.5}, {"logit_bias": {}}], ids=str)
def test_rows_without_penalties_are_not_penalised(params: dict[str, Any]) -> None:
    assert not needs_penalties(SamplingParams(**params))
    scores = torch.randn(6)
    before = scores.clone()
    penalise(scores, SamplingParams(**params), History([1, 2], {3: 4}))
    assert torch.equal(scores, before)


@pytest.mark.parametrize("prompt_ids", [[50], [], [50, 3]], ids=str)
def test_ids_outside_the_vocabulary_are_ignored(prompt_ids: list[int]) -> None:
    scores = torch.ones(3)
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=1.0, logit_bias={3: 5.0, 99: 5.0})
    penalise(scores, params, History(prompt_ids, {}))
    assert scores.tolist() == [1.0, 1.0, 1.0]


# ---- drawing -----------------------------------------------------------------------------------------------------------


def times_of(num_rows: int, width: int, *, seed: int = 9) -> Tensor:
    """Times of the first positions of one seed, `[num_rows, width]`."""
    return torch.stack([race_times(seed, position, width) for position in range(num_rows)])


@pytest.mark.parametrize(
    "probs",
    [
        [0.0, 0.3, 0.0, 0.7, 0.0],
        [0.0, 0.0, 1.0, 0.0, 0.0],
        [0.0, 1e-45, 0.0, 1.0, 0.0],
        [0.1, 0.0, 0.3, 0.6, 0.0],
        [0.0, 0.0, 0.0, 0.0, 1e-30],
    ],
    ids=str,
)
def test_token_of_probability_zero_is_never_drawn(probs: list[float]) -> None:
    drawn = draw(torch.tensor([probs] * 500), times_of(500, 5))
    assert all(probs[token_id] > 0.0 for token_id in drawn.tolist())


def test_small_probability_beside_large_ones_can_be_drawn() -> None:
    probs = torch.tensor([[0.5, 0.5, 1e-9]])
    assert draw(probs, torch.tensor([[1.0, 2.0, 1e-9]])).tolist() == [2]
    assert draw(probs, torch.tensor([[1.0, 2.0, 1e-8]])).tolist() == [0]


def test_draws_follow_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.25, 0.0, 0.2, 0.05])
    num_draws = 20_000
    counts = Counter(draw(probs.expand(num_draws, -1), times_of(num_draws, 5)).tolist())
    possible = [0, 1, 3, 4]
    assert sorted(counts) == possible
    expected = [num_draws * share for share in (0.5, 0.25, 0.2, 0.05)]
    assert stats.chisquare([counts[token] for token in possible], expected).pvalue > FALSE_ALARM


def test_draws_of_chosen_tokens_follow_the_warped_distribution() -> None:
    """Hand-made row: at temperature 0.5 probabilities are squared; top-k 3 leaves 0.16, 0.09, 0.04 of 0.29."""
    scores = torch.tensor([0.4, 0.3, 0.2, 0.08, 0.02]).log()
    num_draws = 20_000
    params = [SamplingParams(temperature=0.5, top_k=3)] * num_draws
    times = list(times_of(num_draws, 5, seed=2**64 - 1))
    counts = Counter(choose(scores.expand(num_draws, -1), params, times).tolist())
    assert sorted(counts) == [0, 1, 2]
    expected = [num_draws * share / 29 for share in (16, 9, 4)]
    assert stats.chisquare([counts[token] for token in range(3)], expected).pvalue > FALSE_ALARM


def test_choosing_is_drawing_from_the_warped_rows() -> None:
    scores = torch.randn(60, 12) * 2
    params = [SamplingParams(temperature=[0.0, 0.7, 1.0][row % 3], top_k=row % 4, top_p=0.9) for row in range(60)]
    times = times_of(60, 12)
    chosen = choose(scores, params, list(times))
    assert torch.equal(chosen, draw(warp(scores, params), times))
    assert torch.equal(chosen[::3], scores[::3].argmax(dim=-1))


def test_greedy_rows_need_no_times() -> None:
    scores = torch.randn(4, 12)
    greedy = [SamplingParams(temperature=0.0)] * 4
    assert torch.equal(choose(scores, greedy, [None] * 4), scores.argmax(dim=-1))


def test_choice_of_a_row_does_not_depend_on_its_neighbours() -> None:
    scores = torch.randn(len(MIXES), 40) * 3
    params = [SamplingParams(**mix) for mix in MIXES]
    times = list(times_of(len(MIXES), 40))
    alone = [
        int(choose(scores[row : row + 1], [own], [time]))
        for row, (own, time) in enumerate(zip(params, times, strict=True))
    ]
    assert choose(scores, params, times).tolist() == alone


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_similar_distributions_mostly_give_the_same_token(scale: float, noise: float) -> None:
    """At least with the probability of the theorem, and never more than any coupling can; 5 standard deviations of slack."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(400, generator=generator) * scale
    target = scores.softmax(dim=-1)
    draft = (scores + noise * torch.randn(400, generator=generator)).softmax(dim=-1)
    distance = float((target - draft).abs().sum()) / 2
    num_draws = 4000
    times = times_of(num_draws, 400)
    same = draw(target.expand(num_draws, -1), times) == draw(draft.expand(num_draws, -1), times)
    slack = 5 * 0.5 / num_draws**0.5
    assert (1 - distance) / (1 + distance) - slack <= float(same.float().mean()) <= 1 - distance + slack
