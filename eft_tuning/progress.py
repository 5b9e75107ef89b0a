"""What people see while an adapter is trained: a bar on a terminal, plain lines without one; and every loss in `loss.jsonl`."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from eft_engine.cli.times import duration
from eft_tuning.stages import SECONDS_BETWEEN_LINES


class Told(TrainerCallback):  # type: ignore[misc]
    """Tells steps, losses and how long it will take, on stderr, and writes losses down. Held-out losses are always told.

    A run that goes on appends to the file of losses what comes behind the step that it goes on from.
    """

    def __init__(self, losses: Path, *, console: Console | None = None) -> None:
        self._losses = losses
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started = self._told = 0.0
        self._first = 0
        self._loss = self._held_out = float("nan")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = self._told = time.monotonic()
        self._first = state.global_step
        kept = [entry for entry in read_losses(self._losses) if entry["step"] <= state.global_step]
        self._losses.write_text("".join(f"{json.dumps(entry)}\n" for entry in kept), encoding="utf-8")
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
            self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        found = logs or {}
        if "loss" not in found and "eval_loss" not in found:
            return  # what is told when training ends
        numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
        with self._losses.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **numbers}) + "\n")
        self._loss = found.get("loss", self._loss)
        self._held_out = found.get("eval_loss", self._held_out)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=f"training, {self._words()}")
        elif "eval_loss" in found or time.monotonic() - self._told >= SECONDS_BETWEEN_LINES or state.global_step == 1:
            self._told = time.monotonic()
            done = state.global_step - self._first
            still = state.max_steps - state.global_step
            left = f", about {duration((self._told - self._started) / done * still)} left" if done and still else ""
            self._console.print(
                f"step {state.global_step} of {state.max_steps}, {self._words()}{left}", soft_wrap=True, highlight=False
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _words(self) -> str:
        words = "" if self._loss != self._loss else f"loss {self._loss:.3f}"
        held_out = "" if self._held_out != self._held_out else f"held-out loss {self._held_out:.3f}"
        return ", ".join(filter(None, (words, held_out)))


class Interrupts(TrainerCallback):  # type: ignore[misc]
    """The first SIGINT or SIGTERM ends training behind the step in progress, with a checkpoint; the second ends it at once."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._before: dict[int, Any] = {}
        self.signal: int | None = None

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(self, *error: object) -> None:
        self._give_back()

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._give_back()
        self._console.print("interrupted: saving a checkpoint behind this step (once more: at once)", soft_wrap=True)

    def _give_back(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.signal is not None and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True


def read_losses(path: Path) -> list[dict[str, Any]]:
    """What is written in a file of losses; a line that an end of power tore is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
