"""What is seen of a training, with a terminal and without one, and what is written down."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from eft_tuning.curves import draw_losses
from eft_tuning.progress import Told, read_losses

LOGS: list[dict[str, Any]] = [
    {"loss": 2.5, "learning_rate": 0.1},
    {"eval_loss": 1.25},
    {"loss": 2.0},
    {"train_runtime": 3.0},
]


def follow(told: Told, *, first: int = 0) -> None:
    """A training of ten steps that logs twice behind its first step, and once behind the next."""
    arguments, control = cast(TrainingArguments, None), TrainerControl()
    state = TrainerState(global_step=first, max_steps=10)
    told.on_train_begin(arguments, state, control)
    for step, logs in zip((first + 1, first + 1, first + 2, first + 2), LOGS, strict=True):
        state.global_step = step
        told.on_step_end(arguments, state, control)
        told.on_log(arguments, state, control, logs=logs)
    told.on_train_end(arguments, state, control)


@pytest.mark.parametrize(("terminal", "loss"), [(False, "loss 2.500"), (True, "loss 2.000")])
def test_losses_are_told(tmp_path: Path, terminal: bool, loss: str) -> None:
    shown = io.StringIO()
    follow(Told(tmp_path / "loss.jsonl", console=Console(file=shown, force_terminal=terminal, width=120)))
    assert loss in shown.getvalue()
    assert "held-out loss 1.250" in shown.getvalue()
    assert ("step 1 of 10" in shown.getvalue()) is not terminal
    assert ("left" in shown.getvalue()) is not terminal
    assert read_losses(tmp_path / "loss.jsonl") == [
        {"step": 1, "loss": 2.5, "learning_rate": 0.1},
        {"step": 1, "eval_loss": 1.25},
        {"step": 2, "loss": 2.0},
    ]


def test_run_that_goes_on_forgets_what_came_behind_its_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "loss.jsonl"
    entries = [{"step": step, "loss": float(step)} for step in (1, 2, 3)]
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"step": 4, "lo')  # power went
    follow(Told(file, console=Console(file=io.StringIO())), first=2)
    assert [entry["step"] for entry in read_losses(file)] == [1, 2, 3, 3, 4]
    assert read_losses(file)[2]["loss"] == 2.5


def test_losses_are_drawn(tmp_path: Path) -> None:
    draw_losses([{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 1.0}], tmp_path / "loss.png", best_step=1)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
