"""A training gives an adapter that the engine takes; the same seed gives the same one, also after an interruption."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import eft_tuning.training as training
from eft_engine import Engine, SamplingParams, TunedPair
from eft_engine.errors import ChatTemplateError, InvalidOptionError
from eft_tuning.errors import NonFiniteLossError, TuningOutOfMemoryError
from tests.gguf_files import write_gguf
from tests.toy import make_model, make_tokenizer

Tune = Callable[..., int]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Killing(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGINT) -> None:
        self._step, self._number = step, number

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step - 1:
            os.kill(os.getpid(), self._number)


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From now on every training is interrupted in the step."""
    callbacks = training._callbacks

    def set_step(step: int | None, number: signal.Signals = signal.SIGINT) -> None:
        def killing(settings: Any, *, evaluates: bool) -> list[Any]:
            return [*callbacks(settings, evaluates=evaluates), *([Killing(step, number)] if step else [])]

        monkeypatch.setattr(training, "_callbacks", killing)

    return set_step


def test_small_model_learns_the_answer_and_the_engine_takes_the_adapter(
    tune: Tune, tmp_path: Path, reference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(learning_rate=0.02, epochs=6.0, measure=True, base=reference) == 0
    told = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert told["data"]["rows"] == 16
    assert told["data"]["held_out_rows"] == 4
    assert told["outcome"]["held_out_loss"] < 0.1 * told["outcome"]["first_held_out_loss"]
    assert told["behaviour"]["tuned"]["form"]["share"] == 1.0
    assert told["behaviour"]["reference"]["form"]["share"] == 0.0
    printed = capsys.readouterr().out
    assert "weight 1: ok." in printed
    assert f'eft generate "..." --base {reference} --tuned {tmp_path / "out"} --reference {reference}' in printed
    pair = TunedPair(tuned=str(tmp_path / "out"), reference=reference)
    with Engine.load(reference, pairs={"tuned": pair}) as engine:
        question = [{"role": "user", "content": "What is a cat?"}]
        asked = engine.generate(question, sampling=SamplingParams(temperature=0.0, max_tokens=8), reward_weights=1.0)
    assert asked.text == "ok."
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "loss.jsonl",
        "loss.png",
        "tuning.json",
    }
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == reference


def test_same_seed_gives_the_same_adapter_and_another_seed_another(tune: Tune, tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        assert tune(name, seed=seed, epochs=1.0) == 0
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "other"))


@pytest.mark.parametrize(
    "step", [1, 3, 5]
)  # before the first checkpoint, between two, in the second pass over the rows
def test_interrupted_run_goes_on_and_gives_the_adapter_of_one_that_was_not(
    tune: Tune, tmp_path: Path, kill_at: Callable[..., None], step: int
) -> None:
    assert tune("whole") == 0
    kill_at(step)
    assert tune("parts") == 130
    assert not (tmp_path / "parts" / "adapter_config.json").exists()
    kill_at(None)
    assert tune("parts") == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    told, whole = (json.loads((tmp_path / name / "tuning.json").read_text())["outcome"] for name in ("parts", "whole"))
    assert told["resumed_from"] == step
    assert told["held_out_loss"] == whole["held_out_loss"]
    losses = [(tmp_path / name / "loss.jsonl").read_text().splitlines() for name in ("parts", "whole")]
    steps = [[json.loads(line)["step"] for line in lines] for lines in losses]
    assert steps[0] == steps[1]


def test_interruption_while_nothing_trains_is_told_too(tune: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("eft_tuning.running.load_reference", interrupt)
    assert tune() == 130


def test_weights_may_be_bfloat16(tune: Tune, tmp_path: Path) -> None:
    assert tune(dtype="bfloat16", epochs=1.0) == 0
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "out").values())


def test_small_model_may_be_a_gguf_file(tune: Tune, tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    write_gguf(make_model("llama"), make_tokenizer(), file, file_type="Q8_0")
    assert tune(reference=str(file), epochs=3.0, learning_rate=0.02, measure=True) == 0
    told = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert told["behaviour"]["tuned"]["begins"]["share"] > told["behaviour"]["reference"]["begins"]["share"]


def test_termination_is_told_by_its_own_status(tune: Tune, kill_at: Callable[..., None]) -> None:
    kill_at(2, signal.SIGTERM)
    assert tune() == 143


def test_checkpoint_that_was_not_finished_is_left_out(tune: Tune, tmp_path: Path, kill_at: Callable[..., None]) -> None:
    assert tune("whole") == 0
    kill_at(3)
    tune()
    torn = tmp_path / "out" / "checkpoints" / "checkpoint-4"
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    kill_at(None)
    assert tune() == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "out"))


def test_interrupted_run_that_is_asked_for_otherwise_says_what_differs(
    tune: Tune, kill_at: Callable[..., None]
) -> None:
    kill_at(2)
    tune(seed=1, rank=4)
    kill_at(None)
    with pytest.raises(InvalidOptionError, match="rank was 4 and is 8") as refused:
        tune(seed=1, rank=8)
    assert "seed" not in str(refused.value)
    assert tune(seed=1, rank=8, restart=True) == 0


def test_finished_adapter_is_not_overwritten_unasked(tune: Tune, tmp_path: Path) -> None:
    tune(epochs=1.0, rank=2)
    before = weights(tmp_path / "out")
    with pytest.raises(InvalidOptionError, match="holds an adapter already"):
        tune(epochs=1.0, rank=2)
    assert same(before, weights(tmp_path / "out"))


def test_training_stops_early_and_keeps_the_best_adapter(tune: Tune, tmp_path: Path) -> None:
    assert tune(learning_rate=0.5, epochs=20.0, patience=2) == 0
    outcome = json.loads((tmp_path / "out" / "tuning.json").read_text())["outcome"]
    assert outcome["steps"] < outcome["planned_steps"]
    entries = map(json.loads, (tmp_path / "out" / "loss.jsonl").read_text().splitlines())
    held_out = {entry["step"]: entry["eval_loss"] for entry in entries if "eval_loss" in entry}
    assert outcome["best_step"] == min(held_out, key=lambda step: held_out[step])
    assert outcome["held_out_loss"] == min(held_out.values())


def test_loss_that_is_no_number_stops_and_saves_no_adapter(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eft_tuning.trainers.negative_log_likelihood", lambda logits, targets: logits[:, 0] * torch.nan)
    with pytest.raises(NonFiniteLossError, match="--lr") as stopped:
        tune()
    assert stopped.value.step == 1
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_step_that_does_not_fit_says_what_to_do(tune: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr("eft_tuning.trainers.logits_at", allocate)
    with pytest.raises(TuningOutOfMemoryError, match="--rows-at-once 1"):
        tune()


def test_reference_without_a_chat_template_is_refused(tune: Tune, tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path / "bare")
    make_tokenizer(chat=False).save_pretrained(tmp_path / "bare")
    with pytest.raises(ChatTemplateError, match="no chat template"):
        tune(reference=str(tmp_path / "bare"))


def test_dry_run_tells_what_is_there_and_writes_nothing(
    tune: Tune, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(dry_run=True) == 0
    assert "16 dialogues to train on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
