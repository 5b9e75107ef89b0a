"""TRL's trainers with what is ours: the loss at answers alone, an order that a run that goes on meets again, loud NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from trl import DPOTrainer, SFTTrainer

from eft_tuning.bake.divergence import divergence as bucket_divergence
from eft_tuning.bake.divergence import student_buckets, teacher_buckets
from eft_tuning.batches import GroupedByLength
from eft_tuning.content import Kind
from eft_tuning.losses import answer_positions, check_finite, divergence, logits_at, negative_log_likelihood


class AnswerTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer on rows that are tokens already, whose answer tokens are learned in one of three ways (`content.Kind`).

    Form: cross-entropy. Content: the divergence from the model with its adapter off, at a weight (`losses.divergence`), so that the
    delta stays near 0 there. Told: the divergence from what a model expects that was told the form. All in nats a token; each
    kind is reported by itself.
    """

    content_at: float = 1.0

    weights: Mapping[Kind, float] = MappingProxyType({Kind.FORM: 1.0, Kind.CONTENT: 1.0, Kind.TOLD: 1.0})

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The loss of one pass: a sum over its answer tokens, divided by those of the whole step."""
        assert not return_outputs, "nobody asks for logits"
        columns, chosen, targets = answer_positions(inputs["labels"])
        logits = logits_at(model, inputs, columns, chosen)  # [num_tokens, vocab]
        kinds = inputs["kinds"][:, 1:][:, columns][chosen]  # [num_tokens]
        is_kind = {kind: kinds == kind for kind in self.weights}
        sums = {}
        if is_kind[Kind.FORM].any():
            form = is_kind[Kind.FORM]
            sums[Kind.FORM] = negative_log_likelihood(logits[form], targets[form]).sum()
        if is_kind[Kind.CONTENT].any():
            with torch.no_grad(), self.accelerator.unwrap_model(model).disable_adapter():
                reference = logits_at(model, inputs, columns, chosen)[is_kind[Kind.CONTENT]]
            sums[Kind.CONTENT] = divergence(reference, logits[is_kind[Kind.CONTENT]], at=self.content_at).sum()
        if is_kind[Kind.TOLD].any():
            told = inputs["teacher_logprobs"] > -math.inf
            teacher = teacher_buckets(inputs["teacher_logprobs"], told)
            student = student_buckets(logits[is_kind[Kind.TOLD]], inputs["teacher_ids"], told)
            sums[Kind.TOLD] = bucket_divergence(teacher, student).sum()
        total = torch.stack([self.weights[kind] * part for kind, part in sums.items()]).sum()
        self._report(sums, {kind: int(own.sum()) for kind, own in is_kind.items()})
        check_finite(total, step=self.state.global_step + 1, advice="a lower --lr, or --dtype float32")
        count = len(targets) if num_items_in_batch is None else num_items_in_batch
        return total / torch.as_tensor(count, device=total.device).clamp(min=1)

    def _report(self, sums: dict[Kind, torch.Tensor], counts: dict[Kind, int]) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        for kind, part in sums.items():
            metrics[f"{kind.name.lower()}_loss"].append(part.item() / counts[kind])

    def _get_train_sampler(self, train_dataset: Any = None) -> GroupedByLength:
        return _sampler(self, train_dataset)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None for checkpoints; the adapter's own folder says what it is in `tuning.json`."""


class PreferenceTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer; the reference is the same network with its adapter off."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's, which must be a number."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = found[0] if return_outputs else found
        check_finite(loss, step=self.state.global_step + 1, advice="a lower --lr, or a lower --beta")
        return found

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset  # rows are tokens already: the template was applied by `rendering`, which checks what it writes

    def _get_train_sampler(self, train_dataset: Any = None) -> GroupedByLength:
        return _sampler(self, train_dataset)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None, as above."""


def _sampler(trainer: Any, train_dataset: Any) -> GroupedByLength:
    rows = trainer.train_dataset if train_dataset is None else train_dataset
    batch_size = trainer.args.per_device_train_batch_size
    return GroupedByLength(list(rows["length"]), batch_size=batch_size, seed=trainer.args.seed)
