"""What computing takes beside weights and caches: of a real step, of every family, and in the checks that count it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eft_engine import Engine, EngineConfig, LoadedPair, SamplingParams, SpeculationOptions, TunedPair
from eft_engine.engine import cache_budget
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


def resident(name: str) -> int:
    """Bytes of VmRSS, or of VmHWM, the most since `clear_most`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def clear_most() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


@pytest.mark.skipif(sys.platform != "linux", reason="the most memory that a process had is told by Linux alone")
@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9, "top_k": 50}])
def test_a_step_of_all_requests_takes_what_is_counted(sampling: dict[str, float]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"word{index}" for index in range(NUM_TOKENS - len(tokenizer))])
    base, tuned, reference = (make_model("gpt2", seed=seed, vocab_size=NUM_TOKENS) for seed in (1, 2, 3))
    config = EngineConfig(max_num_seqs=NUM_SEQS, speculation=DRAFTS, self_check=False, max_warm_prefixes=0)
    with Engine.from_models(
        base, tokenizer=tokenizer, pairs={"chat": LoadedPair(tuned, reference)}, config=config
    ) as engine:
        prompts = ["Once upon a time"] * NUM_SEQS
        params = SamplingParams.model_validate({**sampling, "max_tokens": 12, "ignore_eos": True})
        engine.generate(prompts, sampling=params)  # takes what stays
        clear_most()
        before = resident("VmRSS")
        engine.generate(prompts, sampling=params)
        taken = resident("VmHWM") - before
        counted = step_bytes(engine._trio.networks, config, num_members=3, width=NUM_TOKENS)
    assert 0.1 * counted <= taken <= counted  # the allocator had some of it already


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
