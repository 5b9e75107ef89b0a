"""Rotary positions with one set of factors for short texts and one for long ones (LongRoPE, arXiv 2402.13753), chosen row by row.

transformers chooses one set for a whole batch, by its furthest position, so that a long text changes what its neighbours say.
Here each row has the set of its own text: the model's own, as if that text were read alone. A text that outgrows the short
factors while it is written is read again with the long ones, as every key before the switch was turned by the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from eft_engine.models.layout import current_layout
from eft_engine.models.network import Block
from eft_engine.models.state_rows import StateSlot
from eft_engine.transfer import upload

REREAD_LEN = 512
"""Tokens of a text that is read again are read in pieces of this many."""


class LongRope:
    """The rotary modules of a model that have two sets of factors; the choice is made here until `give_back`."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [module for module in model.modules() if _original_len(module) is not None]

    def __bool__(self) -> bool:
        return bool(self._modules)

    @property
    def original_len(self) -> int:
        """The longest text that has the short factors."""
        return min(length for module in self._modules if (length := _original_len(module)) is not None)

    def take(self) -> None:
        """Choose row by row."""
        for module in self._modules:
            module.forward = functools.partial(_row_by_row, module, type(module).forward.__get__(module))

    def give_back(self) -> None:
        """Let the modules choose."""
        for module in self._modules:
            vars(module).pop("forward", None)

    def is_long(self, slot: StateSlot, length: int) -> bool:
        """Which factors a slot has once it holds a text of `length`."""
        return max(length, slot.least_len) > self.original_len

    def read(self, blocks: Sequence[Block], run: Callable[[Sequence[Block]], Tensor]) -> Tensor:
        """Logits of blocks as of `Network.forward`, from passes of `run` in which every row has one set of factors and keys of
        that set.
        """
        blocks = [block.read() for block in blocks]
        before = [self._before_switch(block) for block in blocks]
        early: dict[int, Tensor] = {}
        crossing = [index for index, count in enumerate(before) if count]
        if crossing:
            first = [_cut(blocks[index], stop=before[index]) for index in crossing]
            logits = self._run(first, run)
            pieces = torch.split(logits, [block.num_logits for block in first])
            early = dict(zip(crossing, pieces, strict=True))
            blocks = [_cut(block, start=count) for block, count in zip(blocks, before, strict=True)]
        logits = self._run(blocks, run)
        if not early:
            return logits
        own = torch.split(logits, [block.num_logits for block in blocks])
        parts = [torch.cat([early[index], piece]) if index in early else piece for index, piece in enumerate(own)]
        return torch.cat(parts)

    def _before_switch(self, block: Block) -> int:
        """Tokens of a block up to the last one with short factors, where it goes beyond that; else 0."""
        slot = block.slot
        assert isinstance(slot, StateSlot), "a block's slot is of its network"
        room = self.original_len - slot.length
        crosses = slot.least_len <= self.original_len and 0 < room < len(block.token_ids)
        return room if crosses else 0

    def _run(self, blocks: Sequence[Block], run: Callable[[Sequence[Block]], Tensor]) -> Tensor:
        for block in blocks:
            slot = block.slot
            assert isinstance(slot, StateSlot), "a block's slot is of its network"
            known = slot.token_ids[: slot.length]
            is_long = self.is_long(slot, len(known) + len(block.token_ids))
            if is_long != slot.is_long:
                slot.length = 0
                slot.is_long = is_long
                for start in range(0, len(known), REREAD_LEN):
                    run([Block(slot, known[start : start + REREAD_LEN], 0, block.adapter)])
            slot.token_ids = [*known, *block.token_ids]
        return run(blocks)


def _original_len(module: nn.Module) -> int | None:
    """The longest text that has the short factors of a rotary module; None: it has one set."""
    kinds = getattr(module, "rope_type", None)
    parameters: Any = getattr(getattr(module, "config", None), "rope_parameters", None)
    if kinds == "longrope" and parameters:
        return int(parameters["original_max_position_embeddings"])
    if isinstance(kinds, dict):
        lengths = [
            int(parameters[kind]["original_max_position_embeddings"]) for kind in kinds if kinds[kind] == "longrope"
        ]
        return min(lengths, default=None)
    return None


def _row_by_row(
    module: nn.Module,
    forward: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    position_ids: Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[rows, columns, dim]` of a module that goes by the furthest position that it is shown."""
    layout = current_layout()
    is_long = layout.is_long if layout is not None else ()
    if not any(is_long):
        return forward(x, position_ids, *args, **kwargs)
    original_len = _original_len(module)
    assert original_len is not None, "the module has two sets"
    beyond = position_ids.new_full((*position_ids.shape[:-1], 1), original_len)
    far = forward(x, torch.cat([position_ids, beyond], dim=-1), *args, **kwargs)
    long = far[0][..., :-1, :], far[1][..., :-1, :]
    if all(is_long):
        return long
    short = forward(x, position_ids.clamp(max=original_len - 1), *args, **kwargs)
    chosen = upload(is_long, long[0].device)[:, None, None]
    return torch.where(chosen, long[0], short[0]), torch.where(chosen, long[1], short[1])


def _cut(block: Block, *, start: int = 0, stop: int | None = None) -> Block:
    """A block's tokens from `start` to `stop`, with the logits that are wanted of them."""
    count = len(block.token_ids)
    stop = count if stop is None else stop
    first_wanted = count - block.num_logits
    num_logits = max(0, stop - max(start, first_wanted))
    num_provisional = max(0, stop - max(start, count - block.num_provisional))
    return replace(block, token_ids=block.token_ids[start:stop], num_logits=num_logits, num_provisional=num_provisional)
