"""Recorded passes give what ordinary passes give, whatever is replayed after what.

CUDA graphs need a GPU. What they are strict about can be had without: `TapeRecorder` replays the tensor operations of one run,
with every number that Python had computed baked in.
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from eft_engine import Engine, SamplingParams, SpeculationOptions, TunedPair
from eft_engine.models import loading, recording
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.network import Block
from eft_engine.models.recording import RecordedPasses, Recorder, recorder_for
from tests.toy import WITH_STATES, make_model, make_trio, naive_greedy, save_adapter

PROMPTS = ["A", "Once upon a time there was", "naïve façade – déjà vu"]
WEIGHTS = [0.5, 1.0, 2.0]
MAX_TOKENS = 12


class Tape(TorchDispatchMode):
    """Notes every tensor operation, with the places that it read and wrote. As in a CUDA graph, what was made outside of it is not
    kept alive by it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, Any]] = []
        self._made_inside: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        noted = tree_map(self._note, (args, kwargs or {}))
        self._made_inside.update(id(tensor) for tensor in tree_leaves(result) if isinstance(tensor, Tensor))
        self._operations.append((func, *noted, result))
        return result

    def _note(self, value: Any) -> Any:
        """A number that became a tensor on the way is part of the operation."""
        is_outside = isinstance(value, Tensor) and value.dim() > 0 and id(value) not in self._made_inside
        return weakref.ref(value) if is_outside else value

    def replay(self) -> None:
        """Do all of it again, in the same memory."""
        for func, args, kwargs, result in self._operations:
            own_args, own_kwargs = tree_map(self._place, (args, kwargs))
            again = func(*own_args, **own_kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # neither a view nor done in place
                    old.copy_(new)

    @staticmethod
    def _place(value: Any) -> Any:
        if not isinstance(value, weakref.ref):
            return value
        tensor = value()
        assert tensor is not None, "a recording reads memory that was given back"
        return tensor


class TapeRecorder:
    """Replays the tensor operations of one run."""

    def __init__(self) -> None:
        self.num_recordings = 0
        self.num_forgotten = 0

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """See `Recorder`."""
        run()
        with Tape() as tape:
            result = run()
        self.num_recordings += 1
        return tape.replay, result

    def forget(self) -> None:
        """See `Recorder`."""
        self.num_forgotten += 1


@pytest.fixture(autouse=True)
def _record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines record, in windows small enough to meet two of them."""
    monkeypatch.setattr(loading, "recorder_for", lambda model: TapeRecorder())
    monkeypatch.setattr(recording, "MIN_WINDOW", 32)


def recordings(engine: Engine) -> list[RecordedPasses]:
    """Those of every network."""
    found = [network.recorded for network in engine._trio.networks]
    assert all(own is not None for own in found)
    return [own for own in found if own is not None]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_text_of_recorded_passes_equals_the_ten_line_loop(architecture: str) -> None:
    trio = make_trio(architecture)
    expected = [
        naive_greedy(trio, trio.tokenizer.encode(prompt), weight=weight, max_tokens=MAX_TOKENS)
        for prompt, weight in zip(PROMPTS, WEIGHTS, strict=True)
    ]
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    with trio.engine(prefill_chunk_len=16, max_warm_prefixes=2) as engine:
        outputs = engine.generate(PROMPTS, sampling=greedy, reward_weights=WEIGHTS)
        assert [list(output.token_ids) for output in outputs] == expected
        alone = engine.generate(PROMPTS[2], sampling=greedy, reward_weights=WEIGHTS[2])  # with warm slots around
        assert list(alone.token_ids) == expected[2]
        assert all(own.num_replayed > own.num_made > 1 for own in recordings(engine))


def test_recording_is_replayed_and_not_made_again() -> None:
    plain = SpeculationOptions(drafter="none")
    sampling = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    with make_trio("llama").engine(max_warm_prefixes=0) as engine:
        engine.generate("abc", sampling=sampling, speculation=plain)
        made = [own.num_made for own in recordings(engine)]
        engine.generate("abd", sampling=sampling, speculation=plain)
        assert [own.num_made for own in recordings(engine)] == made


def test_recordings_begin_when_the_buffers_are_there() -> None:
    """One that is made before ends with the next pass, since it reads and writes elsewhere."""
    recorder = TapeRecorder()
    network = LanguageModel(make_model("llama"), name="toy", recorder=recorder, self_check=False)
    slot = network.kv_cache.allocate()
    for num_passes in range(3):
        network.forward([Block(slot, [1], 1)])
        assert recorder.num_recordings == min(num_passes, 1)
    assert recorder.num_forgotten == 0
    network.release()


def test_a_network_that_cannot_be_recorded_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Strict(TapeRecorder):
        def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
            run()
            raise RuntimeError("operation not permitted when stream is capturing")

    model = make_model("llama", seed=3)

    def run(recorder: Recorder | None) -> Tensor:
        network = LanguageModel(model, name="toy", recorder=recorder)
        slot = network.kv_cache.allocate()
        logits = torch.cat([network.forward([Block(slot, [token_id], 1)]) for token_id in (5, 6, 7, 8)])
        network.release()
        return logits

    assert torch.equal(run(Strict()), run(None))
    assert [line for line in caplog.messages if "toy run without CUDA graphs" in line] == caplog.messages[:1]


def test_memory_that_runs_out_in_a_recording_is_told() -> None:
    class Full(TapeRecorder):
        def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    network = LanguageModel(make_model("llama"), name="toy", recorder=Full(), self_check=False)
    slot = network.kv_cache.allocate()
    network.forward([Block(slot, [1], 1)])
    with pytest.raises(torch.OutOfMemoryError):
        network.forward([Block(slot, [1], 1)])
    network.release()


def test_idle_rows_of_a_recording_keep_what_they_hold() -> None:
    """A pass over three slots is padded to four; the fourth holds a warm prompt of its own."""
    model = make_model("llama", seed=3)
    ids = [[(13 * row + 7 * column) % 250 for column in range(9)] for row in range(4)]

    def run(recorder: Recorder | None) -> Tensor:
        network = LanguageModel(model, name="toy", recorder=recorder)
        slots = [network.kv_cache.allocate() for _ in range(4)]
        network.forward([Block(slot, own[:5], 0) for slot, own in zip(slots, ids, strict=True)])
        for column in (5, 6, 7):  # the fourth one waits
            network.forward(
                [Block(slot, own[column : column + 1], 1) for slot, own in zip(slots[:3], ids, strict=False)]
            )
        logits = network.forward([Block(slots[3], ids[3][5:], 4)])
        network.release()
        return logits

    torch.testing.assert_close(run(TapeRecorder()), run(None), rtol=1e-4, atol=1e-4)


def test_tokens_that_only_the_device_knows_are_fed_like_any_other() -> None:
    model = make_model("llama", seed=3)

    def run(blocks: Callable[[LanguageModel], list[Block]]) -> Tensor:
        network = LanguageModel(model, name="toy")
        logits = network.forward(blocks(network))
        network.release()
        return logits

    known = run(
        lambda own: [Block(own.kv_cache.allocate(), [5, 6, 7, 8], 2), Block(own.kv_cache.allocate(), [9, 3], 1)]
    )
    unread = run(
        lambda own: [
            Block(own.kv_cache.allocate(), [5, 6, 0, 0], 2, unread_ids=torch.tensor([7, 8])),
            Block(own.kv_cache.allocate(), [9, 0], 1, unread_ids=torch.tensor([3])),
        ]
    )
    assert torch.equal(known, unread)


def test_a_recording_is_replayed_with_other_rows_on_an_adapter(tmp_path: Path) -> None:
    base = make_model("llama", seed=3)
    folders = [save_adapter(base, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    prompt = torch.tensor([[5, 6, 7, 8]])
    tuned = [PeftModel.from_pretrained(copy.deepcopy(base), str(folder)) for folder in folders]
    expected = [own(prompt).logits[0, -1].detach() for own in (base, *tuned)]
    network = LanguageModel(copy.deepcopy(base), name="toy", recorder=TapeRecorder())
    names = [None, *(network.with_adapter(folder, member="tuned")[1] for folder in folders)]
    slots = [network.kv_cache.allocate() for _ in names]
    assert network.recorded is not None
    for made, order in ((1, (0, 1, 2)), (1, (2, 0, 1)), (1, (1, 1, 0))):
        for slot in slots:
            slot.length = 0
        blocks = [Block(slot, prompt[0].tolist(), 1, names[index]) for slot, index in zip(slots, order, strict=True)]
        before = network.recorded.num_replayed
        logits = network.forward(blocks)
        assert (network.recorded.num_replayed - before, len(network.recorded._recordings)) == (1, made)
        torch.testing.assert_close(logits, torch.stack([expected[index] for index in order]), rtol=1e-4, atol=1e-4)
    network.release()


def test_a_trio_with_an_adapter_is_recorded_and_says_the_same(tmp_path: Path) -> None:
    """The tuned model is the reference with an adapter: one network, whose rows change sides from pass to pass."""
    trio = make_trio("llama")
    adapter = save_adapter(trio.reference, tmp_path / "adapter", seed=3)
    tuned = PeftModel.from_pretrained(copy.deepcopy(trio.reference), str(adapter)).merge_and_unload()
    for name, member in (("base", trio.base), ("reference", trio.reference)):
        member.save_pretrained(tmp_path / name)
        trio.tokenizer.save_pretrained(tmp_path / name)
    trio = dataclasses.replace(trio, tuned=tuned)
    expected = [
        naive_greedy(trio, trio.tokenizer.encode(prompt), weight=weight, max_tokens=MAX_TOKENS)
        for prompt, weight in zip(PROMPTS, WEIGHTS, strict=True)
    ]
    pairs = {"chat": TunedPair(str(adapter), str(tmp_path / "reference"))}
    with Engine.load(str(tmp_path / "base"), pairs=pairs) as engine:
        outputs = engine.generate(
            PROMPTS, sampling=SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS), reward_weights=WEIGHTS
        )
        assert [list(output.token_ids) for output in outputs] == expected
        assert [own.num_replayed > own.num_made > 1 for own in recordings(engine)] == [True, True]


def test_large_passes_are_not_recorded() -> None:
    network = LanguageModel(make_model("llama"), name="toy", recorder=TapeRecorder())
    assert network.recorded is not None
    made = network.recorded.num_made
    network.forward([Block(network.kv_cache.allocate(), list(range(recording.MAX_RECORDED_TOKENS + 1)), 1)])
    assert network.recorded.num_made == made
    network.release()


@pytest.mark.parametrize("architecture", WITH_STATES)
def test_passes_of_networks_with_states_are_run_as_they_are(architecture: str) -> None:
    trio, judge = make_trio(architecture), make_trio(architecture)
    drafting = SpeculationOptions(drafter="tuned", adaptive=False, max_draft_tokens=3)
    with trio.engine(speculation=drafting) as engine:
        outputs = engine.generate(
            PROMPTS, sampling=SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS), reward_weights=WEIGHTS
        )
        assert [own.num_replayed for own in recordings(engine)] == [0, 0, 0]
    assert [list(output.token_ids) for output in outputs] == [
        naive_greedy(judge, judge.tokenizer.encode(prompt), weight=weight, max_tokens=MAX_TOKENS)
        for prompt, weight in zip(PROMPTS, WEIGHTS, strict=True)
    ]


@pytest.mark.parametrize("architecture", ["mistral", "gemma3"])
def test_windows_that_begin_to_bind_are_recorded_too(architecture: str) -> None:
    """One row is shorter than the window, the other longer; both grow from recording to recording."""
    model = make_model(architecture, seed=3)

    def run(recorder: Recorder | None) -> Tensor:
        network = LanguageModel(model, name="toy", recorder=recorder)
        short, long = network.kv_cache.allocate(), network.kv_cache.allocate()
        network.forward([Block(short, [5], 0), Block(long, list(range(20)), 0)])
        rows = [network.forward([Block(short, [9], 1), Block(long, [token_id], 1)]) for token_id in range(30)]
        network.release()
        return torch.cat(rows)

    torch.testing.assert_close(run(TapeRecorder()), run(None), rtol=1e-4, atol=1e-4)


def test_models_on_a_cpu_are_not_recorded() -> None:
    assert recorder_for(make_model("llama")) is None
