"""What computing takes beside weights and caches: of a real step, of every family, and in the checks that count it."""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eft_engine import Engine, EngineConfig, LoadedPair, SamplingParams, SpeculationOptions, TunedPair
from eft_engine.engine import cache_budget
from eft_engine.engine.scheduler import StepPlan
from eft_engine.engine.step import Stepper
from eft_engine.errors import LoadOutOfMemoryError
from eft_engine.models import memory_check
from eft_engine.models.planning import plan_trio
from eft_engine.models.work_memory import Widths, step_bytes, widths_of
from tests.survey.tiny import tiny_model
from tests.toy import make_model, make_tokenizer, make_trio, save_trio

pytestmark = pytest.mark.only_torch

NUM_TOKENS = 2**15
NUM_SEQS = 8
DRAFTS = SpeculationOptions(drafter="tuned", max_draft_tokens=4, adaptive=False, min_confidence=0.0)


def _tensors(values: Any) -> list[torch.Tensor]:
    """All but those that oneDNN has packed: they are weights."""
    return [own for own in tree_leaves(values) if isinstance(own, torch.Tensor) and not own.is_mkldnn]


class LiveBytes(TorchDispatchMode):
    """The most bytes of results that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._tensors: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {own.untyped_storage()._cdata for own in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for own in _tensors(result):
            storage = own.untyped_storage()
            if storage._cdata in self._tensors or storage._cdata not in known:  # else it was made before
                self._add(own, storage._cdata, storage.nbytes())
        self.most = max(self.most, self._now)
        return result

    def _add(self, tensor: torch.Tensor, storage: int, num_bytes: int) -> None:
        self._now += 0 if self._tensors[storage] else num_bytes
        self._tensors[storage] += 1
        weakref.finalize(tensor, self._drop, storage, num_bytes)

    def _drop(self, storage: int, num_bytes: int) -> None:
        self._tensors[storage] -= 1
        if not self._tensors[storage]:
            del self._tensors[storage]
            self._now -= num_bytes


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9, "top_k": 50}])
def test_a_step_of_all_requests_takes_what_is_counted(
    sampling: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"word{index}" for index in range(NUM_TOKENS - len(tokenizer))])
    base, tuned, reference = (make_model("gpt2", seed=seed, vocab_size=NUM_TOKENS) for seed in (1, 2, 3))
    config = EngineConfig(max_num_seqs=NUM_SEQS, speculation=DRAFTS, self_check=False, max_warm_prefixes=0)
    pairs = {"chat": LoadedPair(tuned, reference)}
    taken: list[int] = []
    original = Stepper.step

    def step(self: Stepper, plan: StepPlan) -> None:
        with LiveBytes() as live:
            original(self, plan)
        taken.append(live.most)

    with Engine.from_models(base, tokenizer=tokenizer, pairs=pairs, config=config) as engine:
        prompts = ["Once upon a time"] * NUM_SEQS
        params = SamplingParams.model_validate({**sampling, "max_tokens": 12, "ignore_eos": True})
        engine.generate(prompts, sampling=params)
        monkeypatch.setattr(Stepper, "step", step)
        engine.generate(prompts, sampling=params)
        counted = step_bytes(engine._trio.networks, config, num_members=3, width=NUM_TOKENS)
    assert 0.4 * counted <= max(taken) <= counted


def test_networks_with_memory_of_their_own_give_logits_alone() -> None:
    assert Widths(100).pass_bytes(num_tokens=50, num_logits=3) == 3 * 100 * 8


@pytest.mark.parametrize("name", ["llama", "gemma3n_text", "mamba", "gpt2", "qwen2_5_vl", "falcon_h1"])
def test_widths_are_those_of_the_model(name: str) -> None:
    model = tiny_model(name, seed=1)
    widths = widths_of(model, torch.bfloat16)
    assert (widths.logits, widths.hidden) == tuple(model.get_output_embeddings().weight.shape)
    gated = getattr(model.config.get_text_config(), "intermediate_size", None)
    assert widths.gated == np.max(gated or 4 * widths.hidden)
    one, two = (widths.pass_bytes(num_tokens=number, num_logits=0) for number in (1, 2))
    assert 0 < one == two - one


def test_loading_counts_the_work_of_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = save_trio(tmp_path)
    pairs = {"chat": TunedPair(paths["tuned"], paths["reference"])}
    config = EngineConfig(device="cpu")
    plan = plan_trio(paths["base"], pairs, config)
    weights = sum(network.parameter_bytes for network in plan.networks.values())
    work = step_bytes(plan.networks.values(), config, num_members=3, width=plan.vocabulary.width, num_seqs=1)
    assert work < step_bytes(plan.networks.values(), config, num_members=3, width=plan.vocabulary.width)
    monkeypatch.setattr(memory_check, "available_memory", lambda device: weights + work)
    Engine.load(paths["base"], pairs=pairs, config=config).close()
    monkeypatch.setattr(memory_check, "available_memory", lambda device: weights + work - 1)
    with pytest.raises(LoadOutOfMemoryError, match="a step of one request works with about") as caught:
        Engine.load(paths["base"], pairs=pairs, config=config)
    assert caught.value.needed_bytes == weights + work


def test_loading_counts_a_copy_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = save_trio(tmp_path)
    pairs = {"chat": TunedPair(paths["tuned"], paths["reference"])}
    needed = []
    for draft_quantization in ("none", "int4", "int8"):
        monkeypatch.setattr(memory_check, "available_memory", lambda device: 0)
        config = EngineConfig.model_validate({"device": "cpu", "draft_quantization": draft_quantization})
        with pytest.raises(LoadOutOfMemoryError) as caught:
            Engine.load(paths["base"], pairs=pairs, config=config)
        needed.append(caught.value.needed_bytes)
    tuned = plan_trio(paths["base"], pairs, EngineConfig(device="cpu")).networks["chat.tuned"].parameter_bytes
    assert [(own - needed[0]) / tuned for own in needed] == pytest.approx([0, 5 / 32, 8.5 / 32], abs=1e-4)


def test_a_budget_leaves_room_for_the_largest_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trio = make_trio("llama")
    step = 0

    def budget(**options: Any) -> int | None:
        nonlocal step
        with trio.engine(**options) as engine:
            width = engine._trio.vocabulary.width
            step = step_bytes(engine._trio.networks, engine.config, num_members=3, width=width)
            return engine._max_kv_cache_bytes

    monkeypatch.setattr(cache_budget, "available_memory", lambda device: 10 * 2**30)
    with caplog.at_level(logging.WARNING, "eft_engine"):
        assert budget() is None
        assert budget(max_kv_cache_bytes="auto") == 9 * 2**30 - step
        assert budget(max_kv_cache_bytes=9 * 2**30 - step) == 9 * 2**30 - step
        assert caplog.messages == []
        assert budget(max_kv_cache_bytes=9 * 2**30 - step + 1) == 9 * 2**30 - step + 1
    assert ["10.00 GiB are free" in message for message in caplog.messages] == [True]
    monkeypatch.setattr(cache_budget, "available_memory", lambda device: 0)
    assert budget(max_kv_cache_bytes="auto") == 1
