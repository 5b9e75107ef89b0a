"""One training, from rows of tokens to an adapter in a folder: TRL trains, this says how and keeps what comes of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from transformers import EarlyStoppingCallback, PrinterCallback
from trl import DPOConfig, SFTConfig

from eft_engine.models.memory import is_out_of_memory
from eft_tuning.batches import PreferenceRow, Row, collate
from eft_tuning.content import Kind
from eft_tuning.curves import draw_losses
from eft_tuning.errors import TuningOutOfMemoryError
from eft_tuning.models import Planned
from eft_tuning.progress import Interrupts, Told, read_losses
from eft_tuning.saving import CHECKPOINTS, Completed, close_run, save_adapter
from eft_tuning.settings import LORA_ALPHA_PER_RANK, TuningSettings, rows_of_a_pass
from eft_tuning.trainers import AnswerTrainer, PreferenceTrainer

MOST_LOGGED = 2000
"""Steps of which each is written down; of a longer training it is every second, third, ..."""


@dataclass(frozen=True)
class Outcome:
    """What came of a training.

    `best_step` is whose adapter was kept, `held_out_loss` its loss there (None: nothing is held out), `seconds` of this process.
    `interrupted_by` is the signal that ended it early; then there is a checkpoint and no adapter.
    """

    steps: int
    best_step: int
    planned_steps: int
    training_loss: float | None
    held_out_loss: float | None
    first_held_out_loss: float | None
    seconds: float
    resumed_from: int = 0
    interrupted_by: int | None = None


def train(
    model: Any,
    planned: Planned,
    rows: Sequence[Row] | Sequence[PreferenceRow],
    held_out: Sequence[Row] | Sequence[PreferenceRow],
    *,
    out: Path,
    settings: TuningSettings,
    resume: Path | None = None,
    console: Console | None = None,
) -> Outcome:
    """Train an adapter on answers (SFT) or preferences (DPO) and save it in `out`.

    Args:
        model: the small model with its weights, which gets the adapter.
        planned: where it came from.
        rows: what is learned; those that are too long are out already.
        held_out: rows whose loss decides when to stop and which adapter is kept; may be empty.
        out: the folder; its parts are those of `saving`.
        settings: how.
        resume: the checkpoint to go on from (`saving.open_run`).
        console: where progress is told; stderr.

    Raises:
        NonFiniteLossError: the loss is no number; no adapter is written.
        TuningOutOfMemoryError: a step does not fit.
    """
    kind = "dpo" if isinstance(rows[0], PreferenceRow) else "sft"
    arguments = _arguments(planned, settings, num_rows=len(rows), out=out, evaluates=bool(held_out))
    columns = [row.columns() for row in rows]
    held_out_columns = sorted((row.columns() for row in held_out), key=lambda row: int(row["length"]))
    common: dict[str, Any] = {
        "model": model,
        "processing_class": planned.tokenizer,
        "train_dataset": Dataset.from_list(columns),
        "eval_dataset": Dataset.from_list(held_out_columns) if held_out else None,
        "peft_config": _adapter(settings),
        "callbacks": _callbacks(settings, evaluates=bool(held_out)),
    }
    if kind == "dpo":
        given = DPOConfig(**arguments, beta=settings.beta, max_length=None)
        trainer: Any = PreferenceTrainer(args=given, **common)
    else:
        given = SFTConfig(**arguments, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
        trainer = AnswerTrainer(args=given, data_collator=collate, **common)
        if settings.keep_content == "hold":
            trainer.weights = {
                Kind.FORM: settings.form_weight,
                Kind.CONTENT: settings.content_weight,
                Kind.TOLD: settings.told_weight,
            }
            trainer.content_at = settings.content_at
    return _run(trainer, out, resume, console)


def _arguments(
    planned: Planned, settings: TuningSettings, *, num_rows: int, out: Path, evaluates: bool
) -> dict[str, Any]:
    """What transformers' trainer is told, SFT or DPO."""
    at_once = rows_of_a_pass(settings)
    passes = settings.batch_size // at_once
    steps_per_epoch = math.ceil(math.ceil(num_rows / at_once) / passes)
    steps = math.ceil(steps_per_epoch * settings.epochs)
    interval = max(1, math.ceil(steps_per_epoch / settings.evaluations))
    chosen: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": interval,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }
    return {
        "output_dir": str(out / CHECKPOINTS),
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": at_once,
        "per_device_eval_batch_size": at_once,
        "gradient_accumulation_steps": passes,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": math.ceil(steps * settings.warmup),
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
        "seed": settings.seed,
        "data_seed": settings.seed,
        "bf16": planned.dtype is torch.bfloat16,
        "fp16": False,
        "use_cpu": torch.device(planned.device).type == "cpu",
        "gradient_checkpointing": settings.save_memory,
        "save_strategy": "steps",
        "save_steps": interval,
        "save_total_limit": 2,
        "logging_steps": math.ceil(steps / MOST_LOGGED),
        "logging_nan_inf_filter": False,  # NaN must not hide behind the average
        "disable_tqdm": True,
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.device(planned.device).type == "cuda",
        "restore_callback_states_from_checkpoint": True,
        **(chosen if evaluates else {"eval_strategy": "no"}),
    }


def _adapter(settings: TuningSettings) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=LORA_ALPHA_PER_RANK * settings.rank,
        lora_dropout=0.0,
        bias="none",
        target_modules="all-linear",
    )


def _callbacks(settings: TuningSettings, *, evaluates: bool) -> list[Any]:
    stopping = [EarlyStoppingCallback(early_stopping_patience=settings.patience)] if evaluates else []
    return [Completed(), *stopping]


def _run(trainer: Any, out: Path, resume: Path | None, console: Console | None) -> Outcome:
    """Train, and write what comes of it."""
    console = console or Console(stderr=True)
    trainer.remove_callback(PrinterCallback)
    told = Told(out / "loss.jsonl", console=console)
    trainer.add_callback(told)
    resumed_from = 0 if resume is None else int(resume.name.removeprefix("checkpoint-"))
    if resume is not None:
        console.print(f"going on from step {resumed_from} of an interrupted run", highlight=False)
    started = time.monotonic()
    try:
        with Interrupts(console) as interrupts:
            trainer.add_callback(interrupts)
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TuningOutOfMemoryError(
            f"a step of {trainer.args.per_device_train_batch_size} rows at once does not fit into memory ({error}); try "
            "--rows-at-once 1 (the steps stay the same), --save-memory, or a lower --max-length"
        ) from error
    finally:
        told.stop()
    losses, state = read_losses(out / "loss.jsonl"), trainer.state
    best = best_step(state, losses)
    held_out = [entry["eval_loss"] for entry in losses if "eval_loss" in entry]
    kept = [entry["eval_loss"] for entry in losses if "eval_loss" in entry and entry["step"] == best]
    outcome = Outcome(
        steps=state.global_step,
        best_step=best,
        planned_steps=state.max_steps,
        training_loss=next((entry["loss"] for entry in reversed(losses) if "loss" in entry), None),
        held_out_loss=kept[-1] if kept else None,
        first_held_out_loss=held_out[0] if held_out else None,
        seconds=round(time.monotonic() - started, 1),
        resumed_from=resumed_from,
        interrupted_by=interrupts.signal if state.global_step < state.max_steps else None,
    )
    draw_losses(losses, out / "loss.png", best_step=best if held_out else None)
    if outcome.interrupted_by is None:
        save_adapter(trainer.accelerator.unwrap_model(trainer.model), out)
        close_run(out)
    return outcome


def best_step(state: Any, losses: Sequence[Mapping[str, Any]]) -> int:
    """The step whose adapter is kept: of the lowest held-out loss, or the last where nothing is held out."""
    if state.best_model_checkpoint is None:
        return int(state.global_step)
    return int(Path(state.best_model_checkpoint).name.removeprefix("checkpoint-"))
