"""The adapter learns what the composition says at every position: transformers' trainer, and the divergence as its loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from eft_engine.evaluation.intervals import Share
from eft_engine.evaluation.teacher import TeacherRow
from eft_engine.models.memory import is_out_of_memory
from eft_tuning.bake.divergence import Divergence, divergence, student_buckets, teacher_buckets
from eft_tuning.bake.rows import TaughtRows, collate
from eft_tuning.bake.settings import BakeSettings
from eft_tuning.bake.student import Student, without_notes
from eft_tuning.batches import GroupedByLength
from eft_tuning.errors import TuningOutOfMemoryError
from eft_tuning.losses import answer_positions, check_finite, logits_at
from eft_tuning.progress import Interrupts
from eft_tuning.stages import Advance, Reporter

WARMUP = 0.1
"""Share of the steps in which the learning rate rises."""


class BakeTrainer(Trainer):  # type: ignore[misc]
    """Minimises the divergence between told tokens and the student's, in nats a token."""

    kind: Divergence = "forward"

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The mean over the positions of a batch.

        Raises:
            NonFiniteLossError: it is no number.
        """
        assert not return_outputs, "nobody asks for logits"
        teacher, student, _ = buckets(model, inputs)
        loss = divergence(teacher, student, self.kind).mean()
        check_finite(loss, step=self.state.global_step + 1, advice="a lower --lr, or --train-dtype float32")
        return loss

    def prediction_step(self, model: Any, inputs: Any, *unused: Any, **further: Any) -> tuple[Tensor, None, None]:
        """The loss alone."""
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The adapter; of embeddings PEFT would ask a hub whether they were changed, and they never are."""
        folder = output_dir or self.args.output_dir
        self.accelerator.unwrap_model(self.model).save_pretrained(folder, save_embedding_layers=False)

    def _get_train_sampler(self, train_dataset: Any = None) -> GroupedByLength:
        rows = self.train_dataset if train_dataset is None else train_dataset
        return GroupedByLength(rows.lengths, batch_size=self.args.per_device_train_batch_size, seed=self.args.seed)


def buckets(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of teacher and student, [positions, k + 1], and whether their most probable tokens agree, [positions]."""
    columns, chosen, _ = answer_positions(inputs["labels"])
    logits = logits_at(model, inputs, columns, chosen)  # [positions, vocab]
    told = inputs["told"]
    teacher = teacher_buckets(inputs["logprobs"], told)
    student = student_buckets(logits, inputs["token_ids"], told)
    first = inputs["logprobs"].masked_fill(~told, -math.inf).argmax(dim=-1, keepdim=True)
    agrees = logits.argmax(dim=-1) == inputs["token_ids"].gather(-1, first)[:, 0]
    return teacher, student, agrees


@dataclass(frozen=True)
class Agreement:
    """How near a student is to the composition, at the positions of the composition's own answers.

    `divergence` is KL(composition || student) in nats a token, over the told tokens and the rest; `same_first`: positions at which
    the most probable token is the same.
    """

    divergence: float
    same_first: Share


@torch.no_grad()
def agreement(student: Student, rows: TaughtRows, *, rows_at_once: int, with_adapter: bool = True) -> Agreement:
    """Measure the student, or the base without its adapter."""
    model = student.model.eval()
    total, hits, count = 0.0, 0, 0
    batches: Any = DataLoader(rows, batch_size=rows_at_once, collate_fn=collate)
    for batch in batches:
        inputs = {name: tensor.to(student.device) for name, tensor in batch.items()}
        if with_adapter:
            teacher, own, agrees = buckets(model, inputs)
        else:
            with model.disable_adapter():
                teacher, own, agrees = buckets(model, inputs)
        total += float(divergence(teacher, own).sum())
        hits, count = hits + int(agrees.sum()), count + len(agrees)
    return Agreement(total / max(1, count), Share(hits, count))


@dataclass(frozen=True)
class Trained:
    """What came of one training. `interrupted_by` is a signal; then there is a checkpoint to go on from."""

    steps: int
    losses: list[dict[str, float]]
    interrupted_by: int | None


def train(
    student: Student,
    rows: Sequence[TeacherRow],
    held_out: TaughtRows,
    settings: BakeSettings,
    *,
    folder: Path,
    kind: Divergence,
    epochs: float,
    title: str,
    reporter: Reporter,
) -> Trained:
    """Train the student's adapter in place; what was begun in `folder` goes on.

    The adapter that is nearest to the composition on held-out prompts is kept.

    Raises:
        NonFiniteLossError: the loss is no number.
        TuningOutOfMemoryError: a step does not fit.
    """
    taught = TaughtRows(rows, top_k=settings.top_k)
    trainer = BakeTrainer(
        model=student.model,
        args=_arguments(
            student, settings, folder=folder, num_rows=len(taught), epochs=epochs, evaluates=len(held_out) > 0
        ),
        data_collator=collate,
        train_dataset=taught,
        eval_dataset=held_out if len(held_out) else None,
        callbacks=[EarlyStoppingCallback(settings.patience)] if len(held_out) and settings.patience else [],
    )
    trainer.kind = kind
    trainer.model_accepts_loss_kwargs = False  # the loss is a mean; the trainer divides by the parts of a step
    trainer.remove_callback(PrinterCallback)
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    try:
        with (
            reporter.stage(title, trainer_steps(trainer)) as advance,
            Interrupts() as interrupts,
            without_notes(),
        ):
            trainer.add_callback(_Telling(advance))
            trainer.add_callback(interrupts)
            trainer.train(resume_from_checkpoint=last)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TuningOutOfMemoryError(
            f"a step of {trainer.args.per_device_train_batch_size} answers at once does not fit into memory ({error}); try "
            "--rows-at-once 1 (the steps stay the same)"
        ) from error
    stopped = interrupts.signal if trainer.state.global_step < trainer.state.max_steps else None
    student.model.eval()
    return Trained(trainer.state.global_step, _losses(trainer.state), stopped)


def trainer_steps(trainer: Trainer) -> int:
    """Steps that a training takes at most."""
    passes = math.ceil(len(trainer.train_dataset) / trainer.args.per_device_train_batch_size)
    per_epoch: int = math.ceil(passes / trainer.args.gradient_accumulation_steps)
    epochs: float = trainer.args.num_train_epochs
    return math.ceil(per_epoch * epochs)


def _arguments(
    student: Student, settings: BakeSettings, *, folder: Path, num_rows: int, epochs: float, evaluates: bool
) -> TrainingArguments:
    at_once = min(settings.rows_at_once, settings.batch_size)
    accumulated = max(1, round(settings.batch_size / at_once))
    steps = math.ceil(math.ceil(math.ceil(num_rows / at_once) / accumulated) * epochs)
    on_cpu = torch.device(student.device).type == "cpu"
    chosen: dict[str, Any] = {
        "eval_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "prediction_loss_only": True,
    }
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=at_once,
        per_device_eval_batch_size=at_once,
        gradient_accumulation_steps=accumulated,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(steps * WARMUP),
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=student.dtype is torch.bfloat16,
        use_cpu=on_cpu,
        save_strategy="epoch",
        save_total_limit=2,
        logging_steps=max(1, math.ceil(steps / 500)),
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        restore_callback_states_from_checkpoint=True,
        **(chosen if evaluates else {"eval_strategy": "no"}),
    )
    arguments._n_gpu = min(
        1, arguments.n_gpu
    )  # positions of a batch are one list, which DataParallel would cut anywhere
    return arguments


def _losses(state: TrainerState) -> list[dict[str, float]]:
    return [
        {name: entry[name] for name in ("step", "loss", "eval_loss") if name in entry}
        for entry in state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]


class _Telling(TrainerCallback):  # type: ignore[misc]
    """Tells steps and losses."""

    def __init__(self, advance: Advance) -> None:
        self._advance, self._loss, self._held_out = advance, "", ""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._advance(state.global_step, f"{self._loss}{self._held_out}")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if "loss" in logs:
            self._loss = f"divergence {logs['loss']:.4f}"
        if "eval_loss" in logs:
            self._held_out = f", held out {logs['eval_loss']:.4f}"
