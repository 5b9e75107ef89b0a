"""Warping as transformers does it, and draws that are exactly distributed and repeatable."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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
from eft_engine.decoding.sampling import History, choose, draw, needs_penalties, penalise, uniform, warp

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
LAST_BELOW_ONE = 1.0 - 2**-53


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


# ---- uniform numbers ---------------------------------------------------------------------------------------------------


def test_uniform_numbers_are_uniform() -> None:
    numbers = [uniform(seed, position, salt=0) for seed in range(20) for position in range(1000)]
    assert all(0.0 <= number < 1.0 for number in numbers)
    counts = Counter(int(number * 100) for number in numbers)
    assert stats.chisquare([counts[index] for index in range(100)]).pvalue > FALSE_ALARM
    assert stats.kstest(numbers, "uniform").pvalue > FALSE_ALARM


def test_uniform_numbers_of_neighbours_are_independent() -> None:
    """Chi-square over pairs: a position and the next, a seed and the next, a salt and the next."""
    for step in ((0, 1, 0), (1, 0, 0), (0, 0, 1)):
        pairs = Counter(
            (int(uniform(seed, position, 0) * 8), int(uniform(seed + step[0], position + step[1], step[2]) * 8))
            for seed in range(0, 40, 2)
            for position in range(0, 500, 2)
        )
        assert stats.chisquare([pairs[a, b] for a in range(8) for b in range(8)]).pvalue > FALSE_ALARM


def test_uniform_number_depends_on_each_of_its_arguments_and_on_nothing_else() -> None:
    keys = [(seed, position, salt) for seed in (0, 1, 2**64 - 1) for position in (0, 1, 10**6) for salt in (0, 1)]
    first = [uniform(*key) for key in keys]
    assert len(set(first)) == len(keys)
    assert [uniform(*key) for key in reversed(keys)] == first[::-1]


def test_uniform_numbers_stay_what_they_are() -> None:
    """Another generator would change every text that was made with a seed."""
    assert [uniform(0, 0, 0), uniform(7, 3, 0), uniform(2**64 - 1, 10**6, 1)] == [
        0.011546754286331562,
        0.7545134190860097,
        0.4073164691706488,
    ]


# ---- drawing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0.0, 5e-324, 0.25, LAST_BELOW_ONE])
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
def test_token_of_probability_zero_is_never_drawn(probs: list[float], number: float) -> None:
    assert probs[int(draw(torch.tensor([probs]), [number]))] > 0.0


def test_token_is_where_the_cumulative_probability_passes_the_number() -> None:
    probs = torch.tensor([[0.5, 0.25, 0.0, 0.25]])
    numbers = [0.0, 0.4999, 0.5, 0.7499, 0.75, LAST_BELOW_ONE]
    assert draw(probs.expand(6, -1), numbers).tolist() == [0, 0, 1, 1, 3, 3]


def test_small_probability_beside_large_ones_can_be_drawn() -> None:
    probs = torch.tensor([[0.5, 0.5, 1e-9]])  # float32 would lose the last one in the sum
    assert draw(probs.expand(2, -1), [1 - 2e-9, 1 - 5e-10]).tolist() == [1, 2]


@given(st.integers(0, 1000), st.floats(0, LAST_BELOW_ONE))
def test_drawn_token_has_the_number_in_its_interval(seed: int, number: float) -> None:
    probs = (torch.randn(1, 30, generator=torch.Generator().manual_seed(seed)) * 4).softmax(dim=-1)
    probs[probs < 0.01] = 0.0  # no longer sums to 1, as rounded rows never do exactly
    token = int(draw(probs, [number]))
    shares = (probs.double() / probs.double().sum())[0]
    assert shares[token] > 0
    assert float(shares[:token].sum()) - 1e-12 <= number <= float(shares[: token + 1].sum()) + 1e-12


def test_draws_follow_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.25, 0.0, 0.2, 0.05])
    num_draws = 20_000
    numbers = [uniform(seed=9, position=index, salt=0) for index in range(num_draws)]
    counts = Counter(draw(probs.expand(num_draws, -1), numbers).tolist())
    possible = [0, 1, 3, 4]
    assert sorted(counts) == possible
    expected = [num_draws * share for share in (0.5, 0.25, 0.2, 0.05)]
    assert stats.chisquare([counts[token] for token in possible], expected).pvalue > FALSE_ALARM


def test_draws_of_chosen_tokens_follow_the_warped_distribution() -> None:
    """Hand-made row: at temperature 0.5 probabilities are squared; top-k 3 leaves 0.16, 0.09, 0.04 of 0.29."""
    scores = torch.tensor([0.4, 0.3, 0.2, 0.08, 0.02]).log()
    num_draws = 20_000
    numbers = [uniform(seed=2**64 - 1, position=index, salt=0) for index in range(num_draws)]
    params = [SamplingParams(temperature=0.5, top_k=3)] * num_draws
    counts = Counter(choose(scores.expand(num_draws, -1), params, numbers).tolist())
    assert sorted(counts) == [0, 1, 2]
    expected = [num_draws * share / 29 for share in (16, 9, 4)]
    assert stats.chisquare([counts[token] for token in range(3)], expected).pvalue > FALSE_ALARM


def test_choosing_is_drawing_from_the_warped_rows() -> None:
    scores = torch.randn(60, 12) * 2
    params = [SamplingParams(temperature=[0.0, 0.7, 1.0][row % 3], top_k=row % 4, top_p=0.9) for row in range(60)]
    numbers = [uniform(1, row, 0) for row in range(60)]
    chosen = choose(scores, params, numbers)
    assert torch.equal(chosen, draw(warp(scores, params), numbers))
    assert torch.equal(chosen[::3], scores[::3].argmax(dim=-1))


def test_greedy_rows_do_not_use_their_number() -> None:
    scores = torch.randn(4, 12)
    greedy = [SamplingParams(temperature=0.0)] * 4
    for number in (0.0, 0.5, LAST_BELOW_ONE):
        assert torch.equal(choose(scores, greedy, [number] * 4), scores.argmax(dim=-1))


def test_choice_of_a_row_does_not_depend_on_its_neighbours() -> None:
    scores = torch.randn(len(MIXES), 40) * 3
    params = [SamplingParams(**mix) for mix in MIXES]
    numbers = [uniform(seed, 0, 0) for seed in range(len(MIXES))]
    alone = [
        int(choose(scores[row : row + 1], [own], [number]))
        for row, (own, number) in enumerate(zip(params, numbers, strict=True))
    ]
    assert choose(scores, params, numbers).tolist() == alone
