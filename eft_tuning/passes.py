"""What a model expects at each answer token of dialogues, a few dialogues at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from eft_tuning.batches import Row, collate
from eft_tuning.losses import answer_positions, logits_at
from eft_tuning.rendering import Rendered

MOST_TOKENS = 2048
"""Tokens of one pass, padding included."""

MOST_LOGITS = 256
"""Answer tokens of one pass: each has a row of the whole vocabulary."""


def batches_of(rows: Sequence[Rendered]) -> list[list[int]]:
    """Indices of rows in passes, rows of similar length together; one that is larger than a pass has its own."""
    batches: list[list[int]] = []
    answers = 0
    for index in sorted(range(len(rows)), key=lambda place: len(rows[place])):
        own = rows[index].num_answer_tokens
        fits = (
            batches
            and (len(batches[-1]) + 1) * len(rows[index]) <= MOST_TOKENS  # sorted: this one is the longest
            and answers + own <= MOST_LOGITS
        )
        if fits:
            batches[-1].append(index)
            answers += own
        else:
            batches.append([index])
            answers = own
    return batches


@torch.inference_mode()
def answer_logprobs(
    model: Any, rows: Sequence[Rendered], *, adapter: bool = True
) -> Iterator[tuple[int, torch.Tensor]]:
    """Log-probabilities of the next token before each answer token.

    Args:
        model: a causal language model of transformers, with an adapter or without.
        rows: dialogues; each has answer tokens, and the first token of none is one.
        adapter: False: the model's adapter is off.

    Yields:
        Index of a row and [num_answer_tokens, vocab] in float32; rows in the order of their lengths.
    """
    without = contextlib.nullcontext() if adapter or not hasattr(model, "disable_adapter") else model.disable_adapter()
    was_training = bool(getattr(model, "training", False))
    model.eval()
    device = next(model.parameters()).device
    try:
        with without:
            for batch in batches_of(rows):
                inputs = collate([Row(rows[index].token_ids, rows[index].is_answer).columns() for index in batch])
                inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
                columns, chosen, _ = answer_positions(inputs["labels"])
                logits = logits_at(model, inputs, columns, chosen)  # [num_chosen, vocab]
                start = 0
                for index, count in zip(batch, chosen.sum(dim=1).tolist(), strict=True):
                    yield index, logits[start : start + count].log_softmax(dim=-1)
                    start += count
    finally:
        model.train(was_training)


def answer_ids(row: Rendered) -> torch.Tensor:
    """The answer tokens of a row, [num_answer_tokens]."""
    return torch.tensor([token for token, own in zip(row.token_ids, row.is_answer, strict=True) if own])
