"""Rows of tokens as tensors, and the order in which they come."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from eft_tuning.content import Kind, TopLogprobs
from eft_tuning.losses import IGNORED


@dataclass(frozen=True)
class Row:
    """One dialogue as it is trained on.

    `is_answer` marks what is learned, and `kinds` how (`content.Kind`; []: all of it is form, learned from the data). `teacher`
    has what tokens of kind `TOLD` are learned from, by their place.
    """

    token_ids: list[int]
    is_answer: list[bool]
    kinds: list[int] = field(default_factory=list)
    teacher: dict[int, TopLogprobs] = field(default_factory=dict)

    def columns(self) -> dict[str, Any]:
        """The row of a data set; what is told stands in the order of its tokens."""
        told = [self.teacher[place] for place in sorted(self.teacher)]
        return {
            "input_ids": self.token_ids,
            "labels": [token if own else IGNORED for token, own in zip(self.token_ids, self.is_answer, strict=True)],
            "kinds": [int(kind) for kind in self.kinds or self.is_answer],
            "teacher_ids": [list(top.token_ids) for top in told],
            "teacher_logprobs": [list(top.logprobs) for top in told],
            "length": len(self.token_ids),
        }


@dataclass(frozen=True)
class PreferenceRow:
    """A prompt and two ways to go on, as TRL's DPOTrainer takes them when they are tokens already."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    def columns(self) -> dict[str, Any]:
        """The row of a data set."""
        longest = max(self.chosen_ids, self.rejected_ids, key=len)
        return {
            "prompt_ids": self.prompt_ids,
            "chosen_ids": self.chosen_ids,
            "rejected_ids": self.rejected_ids,
            "length": len(self.prompt_ids) + len(longest),
        }


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of a data set, padded on the right to the longest. What padding reads has no influence.

    Returns:
        `input_ids`, `attention_mask`, `labels` and `kinds`, each [batch, width]; `teacher_ids` and `teacher_logprobs`,
        [num_told, k], of the told tokens row by row, padded with a log-probability of -inf.
    """
    width = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, filling: int) -> torch.Tensor:
        return torch.tensor([[*row[name], *[filling] * (width - len(row[name]))] for row in rows])

    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    ids = [torch.tensor(top, dtype=torch.long) for row in rows for top in row["teacher_ids"]]
    logprobs = [torch.tensor(top, dtype=torch.float32) for row in rows for top in row["teacher_logprobs"]]
    return {
        "input_ids": padded("input_ids", 0),
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
        "labels": padded("labels", IGNORED),
        "kinds": padded("kinds", Kind.READ),
        "teacher_ids": pad_sequence(ids, batch_first=True) if ids else torch.zeros(0, 0, dtype=torch.long),
        "teacher_logprobs": pad_sequence(logprobs, batch_first=True, padding_value=-math.inf)
        if logprobs
        else torch.zeros(0, 0),
    }


class GroupedByLength(Sampler[int]):
    """Rows of similar length stand together, in an order that only seed and epoch decide: so a run that goes on sees the same."""

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self._lengths = list(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each pass."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        # Single passes are grouped, and shuffled once more: sorted ones would begin each epoch with its longest rows.
        order = get_length_grouped_indices(self._lengths, self._batch_size, generator=generator)
        passes = [order[at : at + self._batch_size] for at in range(0, len(order), self._batch_size)]
        whole = [each for each in passes if len(each) == self._batch_size]
        rest = [row for each in passes if len(each) < self._batch_size for row in each]
        shuffled = torch.randperm(len(whole), generator=generator).tolist()
        return iter([*(row for at in shuffled for row in whole[at]), *rest])
