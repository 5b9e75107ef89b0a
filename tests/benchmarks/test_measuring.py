"""What the speed benchmarks measure with: limits of batching, attention timed inside passes, the clock for busy machines."""

from __future__ import annotations

import pytest
import torch

from benchmarks import rounds
from benchmarks.batch_limit import batch_limits
from benchmarks.growth import timed_attention
from eft_engine import Engine, EngineConfig, SamplingParams, SpeculationOptions
from tests.toy import make_model, make_tokenizer, make_trio


def test_limits_are_given_for_one_network_and_leave_no_slot_in_use() -> None:
    config = EngineConfig(cpu_kernels=False)
    with Engine.from_models(make_model("llama"), tokenizer=make_tokenizer(), config=config) as engine:
        limits = batch_limits(engine, [[None], [None, None]], repetitions=1)
        assert set(limits) == {"arithmetic", "products", "passes"}
        assert min(limits.values()) > 0
        assert all(slot is None for slot in engine._trio.networks[0].kv_cache._slots)


def test_attention_is_timed_once_per_layer_and_pass_and_given_back() -> None:
    sampling = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    with make_trio("llama").engine(speculation=SpeculationOptions(drafter="none"), cpu_kernels=False) as engine:
        plain = engine.generate("The old mill", sampling=sampling, reward_weights=0.0)
        with timed_attention(engine) as seconds:
            timed = engine.generate("The old mill", sampling=sampling, reward_weights=0.0)
        num_layers, num_calls = 2, len(seconds)
        engine.generate("Another text", sampling=sampling, reward_weights=0.0)
    assert timed.token_ids == plain.token_ids
    assert num_calls == num_layers * timed.metrics.num_forwards["base"]
    assert len(seconds) == num_calls


def test_cpu_time_is_refused_with_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(RuntimeError, match="OMP_NUM_THREADS=1"):
        rounds.count_cpu_time()
