"""What forward passes cost, and which blocks share one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from eft_engine.engine.acceptance import Acceptance, expected_tokens
from eft_engine.engine.metrics import EngineTotals
from eft_engine.engine.running import StepCosts, StreamRunner, group_by_length
from eft_engine.models.network import Block, KVSlot
from eft_engine.text.vocabulary import SharedVocabulary

NETWORK: Any = object()


class OnGpu:
    """A network that claims to be on a GPU: what it computes has come back already."""

    device = torch.device("cuda")
    num_threads = 0

    def __init__(self, value: float) -> None:
        self.value = value

    def forward(self, blocks: list[Block]) -> torch.Tensor:
        return torch.full((len(blocks), 4), self.value)


def test_networks_on_a_gpu_serve_a_base_elsewhere() -> None:
    """There are streams to run in only where the base is on the GPU too."""
    runner = StreamRunner(SharedVocabulary(4, ()), device=torch.device("cpu"), totals=EngineTotals())
    networks: list[Any] = [OnGpu(1.0), OnGpu(2.0)]
    blocks = [(network, Block(KVSlot(0), [1], 1)) for network in networks]
    seen = [normaliser.item() for _, _, normaliser in runner.logprobs(blocks)]
    assert seen == pytest.approx([1.0 + math.log(4), 2.0 + math.log(4)])


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
