"""Fine-tuning that changes behaviour and leaves knowledge alone.

The form of an answer is learned from the text; its content (names, numbers) is held to what the untuned network says at that
place. A small network that learns facts it does not know would carry confident wrong facts in its delta, and the delta is all
that up-scaling takes from it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from transformers import PreTrainedTokenizerFast

from recipes.atlas.chat import Dialogue, find_spans
from recipes.atlas.corpus import TuningDialogues


@dataclass(frozen=True)
class TuningSettings:
    """`content_weight` scales the divergence at content; None trains content like form, as ordinary fine-tuning does."""

    num_steps: int = 120
    dialogues: int = 16
    learning_rate: float = 1e-3
    content_weight: float | None = 1.0
    warm_up: int = 20

    def rate(self, step: int) -> float:
        """The learning rate at a step: warm-up, then a cosine to a tenth."""
        progress = step / self.num_steps
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up) * (0.55 + 0.45 * math.cos(math.pi * progress))


@dataclass(frozen=True)
class TuningBatch:
    """Token ids [dialogues, length], and which of them are form and which are content of the assistant's answers."""

    ids: torch.Tensor
    is_real: torch.Tensor
    is_form: torch.Tensor
    is_content: torch.Tensor


def encode(dialogues: list[Dialogue], tokenizer: PreTrainedTokenizerFast) -> TuningBatch:
    """Dialogues as one batch, padded on the right."""
    spans = [find_spans(dialogue.marked_text()) for dialogue in dialogues]
    encoded = tokenizer([item.text for item in spans], add_special_tokens=False, return_offsets_mapping=True)
    length = max(len(ids) for ids in encoded["input_ids"])
    batch = TuningBatch(
        torch.full((len(dialogues), length), tokenizer.pad_token_id),
        *(torch.zeros(len(dialogues), length, dtype=torch.bool) for _ in range(3)),
    )
    for row, (item, ids, offsets) in enumerate(
        zip(spans, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ):
        batch.ids[row, : len(ids)] = torch.tensor(ids)
        batch.is_real[row, : len(ids)] = True
        for column, (start, end) in enumerate(offsets):
            if any(start < stop and end > begin for begin, stop in item.slots):
                batch.is_content[row, column] = True
            elif any(begin <= start and end <= stop for begin, stop in item.written):
                batch.is_form[row, column] = True
    return batch


def tuning_loss(
    tuned_logits: torch.Tensor, reference_logits: torch.Tensor, batch: TuningBatch, *, content_weight: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the form, and the divergence (or cross-entropy, without a weight) at content.

    Logits: [dialogues, length, vocab].
    """
    targets, form, content = batch.ids[:, 1:], batch.is_form[:, 1:], batch.is_content[:, 1:]
    tuned = tuned_logits[:, :-1].log_softmax(-1)
    surprise = -tuned.gather(-1, targets[..., None]).squeeze(-1)
    if content_weight is None:
        return surprise[form].mean(), surprise[content].mean()
    reference = reference_logits[:, :-1][content].log_softmax(-1)
    divergence = (reference.exp() * (reference - tuned[content])).sum(-1).mean()
    return surprise[form].mean(), content_weight * divergence


def tune(
    reference: Any,
    tokenizer: PreTrainedTokenizerFast,
    dialogues: TuningDialogues,
    *,
    settings: TuningSettings,
    progress: Progress,
    log: Callable[[str], None],
) -> Any:
    """A tuned copy of `reference`."""
    reference = reference.eval().requires_grad_(False)
    tuned = copy.deepcopy(reference).requires_grad_(True).train()
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    task = progress.add_task("tuning", total=settings.num_steps)
    for step in range(settings.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        batch = encode([dialogues.dialogue() for _ in range(settings.dialogues)], tokenizer)
        mask = batch.is_real.long()
        with torch.no_grad():
            reference_logits = reference(input_ids=batch.ids, attention_mask=mask, use_cache=False).logits
        tuned_logits = tuned(input_ids=batch.ids, attention_mask=mask, use_cache=False).logits
        form, content = tuning_loss(tuned_logits, reference_logits, batch, content_weight=settings.content_weight)
        torch.autograd.backward(form + content)
        torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        progress.update(task, advance=1, description=f"tuning, form {form.item():.3f}, content {content.item():.4f}")
        if (step + 1) % 25 == 0:
            log(f"step {step + 1} of {settings.num_steps}: form {form.item():.4f}, content {content.item():.4f}")
    return tuned.eval()
