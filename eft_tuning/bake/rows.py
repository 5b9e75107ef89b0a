"""Rows of a teacher as tensors: a batch is padded on the right, and what is told of its positions is one list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from eft_engine.evaluation.teacher import LOWEST, TeacherRow
from eft_tuning.losses import IGNORED


@dataclass(frozen=True)
class Taught:
    """A row, held small. `token_ids`, `logprobs` and `told` are [completion, k]; the completion's own token is among them."""

    input_ids: list[int]
    num_prompt: int
    token_ids: np.ndarray[Any, Any]
    logprobs: np.ndarray[Any, Any]
    told: np.ndarray[Any, Any]


def taught(row: TeacherRow, *, top_k: int) -> Taught:
    """The row with the token that was written among the told ones: where it is not, it takes the place of the last.

    A student's own answers have tokens that the composition finds improbable, and just those are what it must hear about.
    """
    shape = (len(row.completion_ids), top_k)
    token_ids, logprobs = np.zeros(shape, np.int64), np.full(shape, LOWEST, np.float32)
    told = np.zeros(shape, np.bool_)
    for place, (ids, values) in enumerate(zip(row.logprob_token_ids, row.logprobs, strict=True)):
        ids, values, written = [*ids[:top_k]], [*values[:top_k]], row.completion_ids[place]
        if written not in ids:
            ids[top_k - 1 :], values[top_k - 1 :] = [written], [row.actual_logprobs[place]]
        token_ids[place, : len(ids)], logprobs[place, : len(ids)], told[place, : len(ids)] = ids, values, True
    return Taught([*row.prompt_ids, *row.completion_ids], len(row.prompt_ids), token_ids, logprobs, told)


class TaughtRows(Dataset[Taught]):
    """Rows as a trainer takes them."""

    def __init__(self, rows: Sequence[TeacherRow], *, top_k: int) -> None:
        self._rows = [taught(row, top_k=top_k) for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> Taught:
        return self._rows[place]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row.input_ids) for row in self._rows]


def collate(rows: Sequence[Taught]) -> dict[str, Tensor]:
    """A batch: `input_ids`, `attention_mask` and `labels` [batch, width], the others [positions, k], row by row."""
    width = max(len(row.input_ids) for row in rows)
    shape = (len(rows), width)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for place, row in enumerate(rows):
        own = torch.tensor(row.input_ids)
        ids[place, : len(own)], mask[place, : len(own)] = own, 1
        labels[place, row.num_prompt : len(own)] = own[row.num_prompt :]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "token_ids": torch.from_numpy(np.concatenate([row.token_ids for row in rows])),
        "logprobs": torch.from_numpy(np.concatenate([row.logprobs for row in rows])),
        "told": torch.from_numpy(np.concatenate([row.told for row in rows])),
    }
