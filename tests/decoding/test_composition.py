"""The formula, against itself written out in float64, and its corner cases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TopPLogitsWarper

from eft_engine.decoding.composition import (
    compose,
    keep_tuned_outside_nucleus,
    member_coefficients,
    member_logprobs,
    nucleus,
)

NONE = torch.tensor([], dtype=torch.long)


@given(st.lists(st.floats(-3, 3), max_size=3), st.floats(0.2, 2.0), st.integers(0, 1000))
def test_composition_is_the_formula(weights: list[float], amplification: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 1 + 2 * len(weights), 11, generator=generator, dtype=torch.float64) * 3
    logprobs = logits.log_softmax(dim=-1)[0]
    base, pairs = logprobs[0], logprobs[1:].reshape(-1, 2, 11)
    expected = (1 - sum(weights)) * base
    for weight, (tuned, reference) in zip(weights, pairs, strict=True):
        expected = expected + weight * (tuned + amplification * (base - reference))
    coefficients = torch.tensor([member_coefficients(weights, amplification=amplification)])
    ours = compose(member_logprobs(logits[0], NONE)[0][None], coefficients).log_softmax(dim=-1)
    assert torch.allclose(ours[0].double(), expected.log_softmax(dim=-1), atol=2e-4)


def test_normalisers_lead_back_to_the_logits() -> None:
    logits = torch.randn(3, 7)
    logprobs, normalisers = member_logprobs(logits, NONE)
    assert torch.allclose(logprobs + normalisers[:, None], logits, atol=1e-6)


def test_masked_ids_get_no_probability_and_the_rest_all_of_it() -> None:
    logprobs, _ = member_logprobs(torch.zeros(1, 4), torch.tensor([1, 3]))
    assert logprobs[0].exp().tolist() == [0.5, 0.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("base", "tuned", "reference", "composed"),
    [
        (-math.inf, -1.0, -1.0, -math.inf),
        (-1.0, -math.inf, -1.0, -math.inf),
        (-1.0, -1.0, -math.inf, -2.0),
        (-1.0, -math.inf, -math.inf, -math.inf),
        (-math.inf, -math.inf, -math.inf, -math.inf),
    ],
)
def test_zero_probabilities_never_become_nan(base: float, tuned: float, reference: float, composed: float) -> None:
    logprobs = torch.tensor([base, tuned, reference])[None, :, None]
    assert compose(logprobs, torch.tensor([[1.0, 1.0, -1.0]])).item() == composed


def test_a_member_with_coefficient_zero_says_nothing() -> None:
    logprobs = torch.tensor([[[-1.0, -2.0], [-math.inf, -math.inf]]])
    assert compose(logprobs, torch.tensor([[1.0, 0.0]])).tolist() == [[-1.0, -2.0]]


@given(st.floats(0.05, 0.99), st.integers(0, 500))
def test_nucleus_is_that_of_transformers(top_p: float, seed: int) -> None:
    scores = torch.randn(2, 30, generator=torch.Generator().manual_seed(seed)) * 3
    kept = TopPLogitsWarper(top_p)(None, scores).isfinite()
    assert torch.equal(nucleus(scores, torch.tensor([top_p, top_p])), kept)


def test_conservative_mode_keeps_the_tuned_probability_outside_its_nucleus() -> None:
    tuned = torch.tensor([[0.6, 0.3, 0.05, 0.04, 0.01]]).log()
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    kept = keep_tuned_outside_nucleus(scores, tuned, torch.tensor([0.8]))
    assert kept[0, :2].tolist() == [1.0, 2.0]
    assert torch.equal(kept[0, 2:], tuned[0, 2:])
