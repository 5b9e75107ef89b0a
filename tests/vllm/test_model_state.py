"""Weights in Model Runner V2, which runs on GPUs only: its part of the plugin, against vLLM's own classes, without the runner."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.vllm.test_refusals import configure
from tests.vllm.trios import TrioFolders, save_trio

OWN = {"chat": 1.0, "json": 0.5}


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> TrioFolders:
    return save_trio("llama", tmp_path_factory.mktemp("llama"), pairs=tuple(OWN))


@pytest.fixture
def state(trio: TrioFolders, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The state of a model with two pairs; without pinned memory, as vLLM has it on a CPU."""
    from vllm.v1.worker.cpu import buffer_utils as on_a_cpu
    from vllm.v1.worker.gpu import buffer_utils

    from eft_integrations.vllm.model_state import EFTModelState

    monkeypatch.setattr(buffer_utils, "UvaBuffer", on_a_cpu.UvaBuffer)
    config = configure(trio, max_num_seqs=4, max_num_batched_tokens=32)
    row = (*OWN.values(), 0.0)
    model = SimpleNamespace(options=SimpleNamespace(weights=OWN, row=row), own_weights=torch.tensor([row]))
    return EFTModelState(config, model, None, torch.device("cpu"))


def begin(state: Any, slot: int, weights: Any, **further: Any) -> None:
    """A request takes a slot."""
    from vllm import SamplingParams

    extra = None if weights is None else {"eft_weights": weights, **further}
    state.add_request(slot, SimpleNamespace(sampling_params=SamplingParams(extra_args=extra), prefill_token_ids=[1]))
    state.apply_staged_writes()


def batch(slots: list[int], lengths: list[int], padded: int) -> Any:
    """Tokens of requests in these slots, as the runner lays them out."""
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return SimpleNamespace(
        idx_mapping=torch.tensor(slots),
        query_start_loc=starts,
        num_tokens_after_padding=padded,
        num_tokens=sum(lengths),
    )


def test_every_token_has_the_weights_of_its_request(state: Any) -> None:
    begin(state, 2, [2.0, -0.7], eft_min_plausibility=0.25)
    begin(state, 0, None)
    begin(state, 3, "json=1.37")
    found = state.prepare_inputs(batch([3, 2, 0], [1, 4, 2], padded=8), None)["eft_weights"]
    rows = [[1.0, 1.37, 0.0]] * 1 + [[2.0, -0.7, 0.25]] * 4 + [[1.0, 0.5, 0.0]] * 2
    assert torch.equal(found[:7], torch.tensor(rows))
    assert found.shape == (8, 3)


def test_slot_is_used_again_with_the_weights_of_its_new_request(state: Any) -> None:
    begin(state, 1, [2.0, 2.0])
    begin(state, 1, [0.0, 0.25])
    assert state.prepare_inputs(batch([1], [2], padded=2), None)["eft_weights"].tolist() == [[0.0, 0.25, 0.0]] * 2


def test_weights_lie_where_a_cuda_graph_was_recorded(state: Any) -> None:
    begin(state, 0, [0.0, 0.0])
    recorded = state.prepare_dummy_inputs(4, 16)["eft_weights"]
    found = state.prepare_inputs(batch([0], [3], padded=16), None)["eft_weights"]
    assert found.data_ptr() == recorded.data_ptr()
    assert recorded.tolist() == [[0.0, 0.0, 0.0]] * 16


@pytest.mark.parametrize("wrong", [[1.0], [float("nan"), 0.0], "chat=high", {"polite": 1.0}, [[1.0], [2.0]], object()])
def test_worker_cannot_fail_over_weights(state: Any, wrong: Any) -> None:
    begin(state, 0, wrong)
    assert state.prepare_inputs(batch([0], [1], padded=1), None)["eft_weights"].tolist() == [[1.0, 0.5, 0.0]]


def test_checks_of_both_runners_are_made_of_their_name() -> None:
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

    from eft_integrations.vllm.admission import check_name

    for load, v2 in ((_load_logitsprocs_by_fqcns, False), (_load_v2_logitsprocs_by_fqcns, True)):
        (check,) = load([check_name(OWN, v2=v2)])
        check.validate_params(SamplingParams(extra_args={"eft_weights": [1.0, 2.0]}))
        with pytest.raises(ValueError, match="there is no pair 'polite'"):
            check.validate_params(SamplingParams(extra_args={"eft_weights": "polite=1"}))


def test_what_is_compiled_for_one_member_is_never_taken_for_another(trio: TrioFolders) -> None:
    """Tuned and reference models have one architecture; vLLM's cache of compiled code tells them apart by these keys."""
    from eft_integrations.vllm.members import member_configs

    config = configure(trio).model_config
    keys = {key: member.compute_hash() for key, member in member_configs(config, max_model_len=None)}
    assert list(keys) == ["base", "tuned_0", "reference_0", "tuned_1", "reference_1"]
    assert len(set(keys.values())) == 5
