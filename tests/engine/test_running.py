"""What forward passes cost, and which blocks share one."""

from __future__ import annotations

from typing import Any

import pytest

from eft_engine.engine.acceptance import Acceptance, expected_tokens
from eft_engine.engine.running import StepCosts, group_by_length
from eft_engine.models.network import Block, KVSlot

NETWORK: Any = object()


def test_costs_are_linear_between_measured_sizes_and_proportional_beyond() -> None:
    costs = StepCosts()
    assert costs.estimate(NETWORK, 3) == 0.0
    for num_tokens, seconds in ((1, 10.0), (4, 16.0), (16, 40.0)):
        costs.note(NETWORK, num_tokens, seconds)
    assert [costs.estimate(NETWORK, number) for number in (1, 2, 4, 10, 16, 32)] == [10.0, 12.0, 16.0, 28.0, 40.0, 80.0]


def test_one_slow_pass_does_not_change_an_estimate() -> None:
    costs = StepCosts()
    for seconds in (1.0, 1.0, 1.0, 50.0):
        costs.note(NETWORK, 1, seconds)
    assert costs.estimate(NETWORK, 1) == 1.0


def test_acceptance_moves_towards_what_is_seen() -> None:
    acceptance = Acceptance(prior=0.5)
    assert acceptance.rate == 0.5
    for _ in range(50):
        acceptance.note(4, 4)
    assert acceptance.rate > 0.95
    for _ in range(50):
        acceptance.note(4, 0)
    assert acceptance.rate < 0.05


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9, 1.0])
def test_expected_tokens_is_the_closed_form(rate: float) -> None:
    closed = 6.0 if rate == 1.0 else (1 - rate**6) / (1 - rate)
    assert expected_tokens(rate, 5) == pytest.approx(closed)


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([1, 1, 1], [[1, 1, 1]]),
        ([1, 9, 16], [[16, 9, 1]]),
        ([100, 1, 60, 1], [[100, 60], [1, 1]]),
        ([100, 50, 20], [[100], [50], [20]]),
    ],
)
def test_long_blocks_are_not_padded_with_short_ones(lengths: list[int], groups: list[list[int]]) -> None:
    blocks = [Block(KVSlot(index), [0] * length, 0) for index, length in enumerate(lengths)]
    assert [[len(block.token_ids) for block in group] for group in group_by_length(blocks)] == groups
