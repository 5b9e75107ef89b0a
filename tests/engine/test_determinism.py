"""A request that is alone is computed the same way every time, where rounding depends on what is computed together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eft_engine import Engine, SamplingParams, SpeculationOptions
from eft_engine.decoding.composition import by_row
from eft_engine.models.network import Block
from tests.toy import make_trio

SAMPLING = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
PROMPT = "A prompt that is long enough to be kept, and to be read in two chunks."
pytestmark = pytest.mark.only_torch


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered from elsewhere."""
    monkeypatch.setenv("EFT_CACHE_DIR", str(tmp_path))


def passes_of(engine: Engine, monkeypatch: pytest.MonkeyPatch, ask: Any) -> list[tuple[str, list[tuple[int, int]]]]:
    """What networks were given while `ask` was answered: by pass the network, and length and logits of each block."""
    passes: list[tuple[str, list[tuple[int, int]]]] = []
    with monkeypatch.context() as patch:
        for network in engine._trio.networks:

            def forward(blocks: list[Block], name: str = network.name, original: Any = network.forward) -> Any:
                passes.append((name, [(len(block.token_ids), block.num_logits) for block in blocks]))
                return original(blocks)

            patch.setattr(network, "forward", forward)
        ask()
    return passes


def test_a_request_that_comes_again_is_computed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamed or whole, and behind the prompt that is kept; in the next engine too."""

    def whole() -> object:
        return engine.generate(PROMPT, sampling=SAMPLING, reward_weights=0.7)

    found = []
    for _ in range(2):
        with make_trio("gpt2").engine(prefill_chunk_len=32) as engine:
            first = passes_of(engine, monkeypatch, whole)
            streamed = passes_of(
                engine, monkeypatch, lambda: list(engine.stream(PROMPT, sampling=SAMPLING, reward_weights=0.7))
            )
            again = passes_of(engine, monkeypatch, whole)
        assert streamed == again
        assert [own for own in first if own[1][0][1]] == again, "what gives logits is computed alike, cold and warm"
        found.append(first)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "by_default", [SpeculationOptions(), SpeculationOptions(drafter="none"), SpeculationOptions(adaptive=False)]
)
def test_costs_are_measured_once_and_change_no_more(by_default: SpeculationOptions) -> None:
    """Whatever the engine does by default, as a call may draft as it pays."""
    estimates = []
    for _ in range(2):
        with make_trio("gpt2").engine(speculation=by_default) as engine:
            costs = engine._worker._stepper._runner.costs
            before = [costs.estimate(network, size) for network in engine._trio.networks for size in (1, 3, 9)]
            engine.generate([PROMPT, "another"], sampling=SAMPLING, speculation=SpeculationOptions())
            after = [costs.estimate(network, size) for network in engine._trio.networks for size in (1, 3, 9)]
            assert before == after
            assert min(before) > 0
            estimates.append(before)
    assert estimates[0] == estimates[1]


def test_networks_of_which_no_bit_depends_on_company_learn_as_they_go() -> None:
    with make_trio("llama").engine(cpu_kernels=True) as engine:
        assert all(network.is_invariant for network in engine._trio.networks)
        assert not engine._worker._stepper._runner.costs.is_settled
        forwards = engine.generate(
            "abc", sampling=SAMPLING, speculation=SpeculationOptions(drafter="none")
        ).metrics.num_forwards
    assert forwards["base"] == SAMPLING.max_tokens, "its prompt and the first token are one pass"


def test_a_single_row_is_summed_as_one_of_several() -> None:
    torch.manual_seed(0)
    rows, before = torch.randn(3, 200_003), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = by_row(lambda own: own.logsumexp(dim=-1), rows)
        for index in range(3):
            assert torch.equal(
                by_row(lambda own: own.logsumexp(dim=-1), rows[index : index + 1]), together[index : index + 1]
            )
    finally:
        torch.set_num_threads(before)
