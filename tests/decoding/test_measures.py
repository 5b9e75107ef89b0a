"""What distributions tell, against the textbook's sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from eft_engine.decoding.measures import OF_BASE, OF_PAIR
from eft_engine.weights import Measure

Probabilities = Sequence[float]


def slow_entropy(p: Probabilities) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def slow_kl(p: Probabilities, q: Probabilities) -> float:
    return sum(math.inf if y == 0 else x * math.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)


def slow_jensen_shannon(p: Probabilities, q: Probabilities) -> float:
    mean = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return (slow_kl(p, mean) + slow_kl(q, mean)) / 2 / math.log(2)


SLOW_OF_BASE: dict[Measure, Callable[[Probabilities], float]] = {"base_entropy": slow_entropy, "base_confidence": max}
SLOW_OF_PAIR: dict[Measure, Callable[[Probabilities, Probabilities], float]] = {
    "kl": slow_kl,
    "total_variation": lambda p, q: sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2,
    "jensen_shannon": slow_jensen_shannon,
}


def test_every_measure_has_a_judge() -> None:
    assert OF_BASE.keys() == SLOW_OF_BASE.keys()
    assert OF_PAIR.keys() == SLOW_OF_PAIR.keys()
    assert OF_BASE.keys() | OF_PAIR.keys() == set(get_args(Measure))


def distributions(seed: int, *, zeros: float, scale: float) -> Tensor:
    """Two for each of three rows, `[2, 3, 17]`, with some probabilities 0; the first token is possible everywhere."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 17, generator=generator) * scale
    logits[..., 1:][torch.rand(2, 3, 16, generator=generator) < zeros] = -math.inf
    return logits.log_softmax(dim=-1)


def probabilities(logprobs: Tensor) -> list[list[float]]:
    found: list[list[float]] = logprobs.double().softmax(dim=-1).tolist()
    return found


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.2, 0.9]), st.sampled_from([0.0, 1.0, 5.0, 10.0]))
def test_measures_are_the_sums(seed: int, zeros: float, scale: float) -> None:
    first, second = distributions(seed, zeros=zeros, scale=scale)
    rows = list(zip(probabilities(first), probabilities(second), strict=True))
    for name, of_base in OF_BASE.items():
        expected = torch.tensor([SLOW_OF_BASE[name](p) for p, _ in rows])
        torch.testing.assert_close(of_base(first), expected, atol=1e-5, rtol=1e-4, msg=name)
    for name, of_pair in OF_PAIR.items():
        expected = torch.tensor([SLOW_OF_PAIR[name](p, q) for p, q in rows])
        torch.testing.assert_close(of_pair(first, second), expected, atol=1e-5, rtol=1e-4, msg=name)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5]))
def test_equal_distributions_are_no_distance_apart(seed: int, zeros: float) -> None:
    first, _ = distributions(seed, zeros=zeros, scale=3.0)
    for of_pair in OF_PAIR.values():
        found = of_pair(first, first.clone())
        assert (found >= 0).all(), "never below zero, whatever is rounded"
        torch.testing.assert_close(found, torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("measure", "expected"), [("kl", math.inf), ("total_variation", 1.0), ("jensen_shannon", 1.0)])
def test_distributions_that_share_no_token(measure: Measure, expected: float) -> None:
    first, second = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.25, 0.75]]).log()
    for one, other in ((first, second), (second, first)):
        assert OF_PAIR[measure](one[None], other[None]).tolist() == pytest.approx([expected])


def test_kl_minds_what_the_second_rules_out_and_not_what_the_first_does() -> None:
    wide, narrow = torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]]]).log()
    assert OF_PAIR["kl"](wide, narrow).tolist() == [math.inf]
    assert OF_PAIR["kl"](narrow, wide).tolist() == pytest.approx([math.log(2)])


def test_what_is_too_improbable_for_a_number_says_nothing() -> None:
    """exp(-150) is 0 in float32, and 0 times infinity no number."""
    tiny, never = torch.tensor([[0.0, -150.0]]), torch.tensor([[0.0, -math.inf]])
    for of_pair in OF_PAIR.values():
        assert of_pair(tiny, never).tolist() == of_pair(never, tiny).tolist() == [0.0]


def test_a_certain_base_has_no_entropy_and_full_confidence() -> None:
    certain = torch.tensor([[0.0, 1.0, 0.0]]).log()
    assert OF_BASE["base_entropy"](certain).tolist() == [0.0]
    assert OF_BASE["base_confidence"](certain).tolist() == [1.0]


@pytest.mark.parametrize("measure", [*OF_BASE, *OF_PAIR])
def test_a_row_is_measured_alone_as_among_others_bit_by_bit(measure: Measure) -> None:
    first, second = distributions(3, zeros=0.2, scale=3.0)
    for row in range(3):
        one, other = first[row : row + 1], second[row : row + 1]
        if measure in OF_BASE:
            assert torch.equal(OF_BASE[measure](first)[row : row + 1], OF_BASE[measure](one))
        else:
            assert torch.equal(OF_PAIR[measure](first, second)[row : row + 1], OF_PAIR[measure](one, other))
