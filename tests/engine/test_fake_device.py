"""Steps over tensors that have a shape and a device and no numbers: nothing lies on the wrong device, and nobody waits for the
device but where a step reads what it found.

What no GPU is needed for. Tensors lie on torch's meta device, in a mode that knows which device each would be on: an operation that
mixes devices raises, and so does each that would need a number; the one read of a step is given made-up ones. Streams, recordings
and pinned memory have no likeness: those are for `test_cuda.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._functorch.config import patch as patch_config
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eft_engine import (
    CompositionOptions,
    Engine,
    EngineConfig,
    Gate,
    LoadedPair,
    SamplingParams,
    SpeculationOptions,
)
from eft_engine.decoding import composition, races
from eft_engine.engine import running
from eft_engine.engine.composing import Evaluation
from eft_engine.engine.scheduler import StepPlan
from eft_engine.engine.step import Stepper
from eft_engine.errors import EngineStepError
from eft_engine.outputs import RequestOutput
from tests.choice import thorough_but
from tests.toy import make_model, make_tokenizer

pytestmark = pytest.mark.only_torch

DEVICE = torch.device("meta")
TOKEN = 7
"""What every read finds in place of a token; as a truth it is true."""
PLAIN = SpeculationOptions(drafter="none")
TUNED = SpeculationOptions(drafter="tuned", adaptive=False, max_draft_tokens=3)
LOOKUP = SpeculationOptions(drafter="prompt_lookup", adaptive=False)
FAMILIES = ("llama", "mistral", "qwen3_next", "falcon_h1", "gpt2", "lfm2")
FUSED = ((running, "member_logprobs"), (races, "times_of_counter"), (composition, "_compose_at_once"))
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Transfers(TorchDispatchMode):
    """What goes from the device to the host, and operations that take tensors of both."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [own for own in tree_leaves((args, kwargs)) if isinstance(own, Tensor)]
        if func in COPIES:
            if result.device.type == "cpu" and any(own.device == DEVICE for own in tensors):
                self.found.append(f"{func} to the host")
        elif len({own.device for own in tensors if own.ndim > 0}) > 1:
            self.found.append(f"{func} of host and device")
        return result


class FakeDevice:
    """Where the models and the steps of one engine are."""

    def __init__(self) -> None:
        with patch_config(fake_tensor_allow_meta=True):
            self.mode = FakeTensorMode()
        self.transfers = Transfers()
        self.reads: list[int] = []
        """Of each step."""

    def model(self, architecture: str, **sizes: Any) -> Any:
        with self.mode, DEVICE:
            return make_model(architecture, **sizes)

    @contextmanager
    def step(self) -> Iterator[None]:
        self.reads.append(0)
        with self.mode, self.transfers:
            yield

    def read(self, tensor: Tensor) -> Any:
        """In place of `tolist`."""
        self.reads[-1] += tensor.device == DEVICE
        return np.full(tuple(tensor.shape), TOKEN).tolist()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    fake = FakeDevice()
    original = Stepper.step

    def step(self: Stepper, plan: StepPlan) -> None:
        with fake.step():
            original(self, plan)

    monkeypatch.setattr(Stepper, "step", step)
    monkeypatch.setattr(Stepper, "calibrate", lambda self, networks: None)  # there is no time on this device
    monkeypatch.setattr(FakeTensor, "tolist", lambda self: fake.read(self))
    for module, name in FUSED:  # a compiler that meets them here gives them up for the whole process
        monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)
    return fake


@contextmanager
def engine_on(device: FakeDevice, architecture: str, **options: Any) -> Iterator[Engine]:
    sizes = ((1, 64), (2, 32), (3, 32))
    base, tuned, reference = (device.model(architecture, seed=seed, hidden_size=size) for seed, size in sizes)
    config = EngineConfig.model_validate({"self_check": False, "speculation": PLAIN, **options})
    pairs = {"chat": LoadedPair(tuned, reference)}
    with device.mode:
        engine = Engine.from_models(base, tokenizer=make_tokenizer(), pairs=pairs, config=config)
    with engine:
        yield engine


def generate(engine: Engine, speculation: SpeculationOptions, **options: Any) -> list[RequestOutput]:
    """Two requests, one greedy and one sampled; `sampling` is changed for both."""
    changes = {"max_tokens": 6, "ignore_eos": True, **options.pop("sampling", {})}
    sampling = [
        SamplingParams.model_validate({"temperature": 0.0, **changes}),
        SamplingParams.model_validate(
            {"temperature": 0.8, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 1, **changes}
        ),
    ]
    outputs = engine.generate(["abc" * 8, "The sky is"], sampling=sampling, speculation=speculation, **options)
    assert [out.token_ids for out in outputs] == [(TOKEN,) * 6] * 2
    return outputs


CASES = [
    *(pytest.param(family, TUNED, id=f"{family}, tuned") for family in FAMILIES),
    pytest.param("llama", PLAIN, id="llama, plain"),
    pytest.param("llama", LOOKUP, id="llama, lookup"),
]


@pytest.mark.parametrize(("architecture", "drafts"), thorough_but(CASES, often={"llama, tuned", "qwen3_next, tuned"}))
def test_a_step_reads_once_and_nothing_lies_elsewhere(
    device: FakeDevice, architecture: str, drafts: SpeculationOptions
) -> None:
    with engine_on(device, architecture) as engine:
        outputs = generate(engine, drafts)
    assert set(device.reads) <= {0, 1}, "0 where a prompt was read"
    assert device.transfers.found == []
    if drafts is TUNED:
        assert all(out.metrics.num_accepted == out.metrics.num_drafted > 0 for out in outputs)


@pytest.mark.parametrize("weight", [2.0, Gate(by="base_entropy", above=0.5, weight=1.5)], ids=["fixed", "measured"])
def test_compositions_read_nothing_more(device: FakeDevice, weight: float | Gate) -> None:
    with engine_on(device, "llama") as engine:
        for composition in (
            CompositionOptions(conservative_top_p=0.5, min_plausibility=0.1),
            CompositionOptions(tuned_plausibility=0.1, amplification=0.5),
        ):
            generate(engine, TUNED, composition=composition, reward_weights=weight)
    assert set(device.reads) <= {0, 1}
    assert device.transfers.found == []


def test_drafts_that_penalties_ask_for_are_read_besides(device: FakeDevice) -> None:
    penalties = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "logit_bias": {9: 2.0}}
    with engine_on(device, "llama") as engine:
        generate(engine, TUNED, sampling=penalties)
    assert 1 < max(device.reads) <= 1 + 2 * TUNED.max_draft_tokens, "each draft's id and probability"
    assert device.transfers.found == []


def test_scores_lie_where_they_belong(device: FakeDevice) -> None:
    with engine_on(device, "llama") as engine:
        scores = engine.score(["abc", "The sky is"], [" def", " blue"])
    assert len(scores) == 2
    assert device.transfers.found == []


def test_a_tensor_that_lies_elsewhere_is_found(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_the_host(values: Any, where: torch.device, *, dtype: torch.dtype | None = None) -> Tensor:
        return torch.tensor(values, dtype=dtype)

    monkeypatch.setattr("eft_engine.engine.step.upload", on_the_host)
    with engine_on(device, "llama") as engine, pytest.raises(EngineStepError, match="same device"):
        generate(engine, PLAIN)


def test_a_number_that_somebody_waits_for_is_found(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Evaluation.composed
    monkeypatch.setattr(Evaluation, "composed", lambda self: original(self) * float(self.weights.sum() > 0))
    with engine_on(device, "llama") as engine, pytest.raises(EngineStepError):
        generate(engine, PLAIN)
