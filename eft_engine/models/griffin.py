"""Recurrent blocks that keep their states on themselves (RecurrentGemma; Griffin, arXiv 2402.19427): over slots instead.

Such a block holds one state for a whole batch, and reads several tokens only from a text's start. While its model belongs to
the engine, its convolution and its recurrence (RG-LRU) go by the rows of a pass.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from eft_engine.models.layout import current_scans
from eft_engine.models.scans import Scan


class GriffinBlocks:
    """The recurrent blocks of a model, computed over slots until `give_back`."""

    def __init__(self, model: nn.Module) -> None:
        self._blocks: list[Any] = [
            module for module in model.modules() if hasattr(module, "rg_lru") and hasattr(module, "conv1d_state")
        ]

    def take(self) -> None:
        """Compute them over slots."""
        for number, block in enumerate(self._blocks):
            block.forward = functools.partial(_forward, block, type(block).forward.__get__(block), number)
            block.rg_lru._rnn_scan = _scan

    def give_back(self) -> None:
        """Let the blocks keep their states."""
        for block in self._blocks:
            for module, name in ((block, "forward"), (block.rg_lru, "_rnn_scan")):
                vars(module).pop(name, None)


def _forward(
    block: Any, own: Any, number: int, input_states: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """A block's output `[rows, columns, hidden]`, and no attention weights."""
    states = current_scans()
    if states is None:
        return own(input_states, position_ids, *args, **kwargs)
    gate = block.act_fn(block.linear_y(input_states))
    layer = (-1 - number, 0)
    line = states.extend_convolution(layer, block.linear_x(input_states).transpose(1, 2), block.conv1d_width - 1)
    convolved = functional.conv1d(line, block.conv_1d.weight, block.conv_1d.bias, groups=line.shape[1])
    states.enter_recurrence(layer)
    hidden = block.rg_lru(convolved.transpose(1, 2), position_ids)
    return block.linear_out(hidden * gate), None


def _scan(
    hidden_states: Tensor, recurrent_gate: Tensor, reset: Tensor, recurrent_states: Tensor | None, **_: Any
) -> tuple[Tensor, Tensor]:
    """The recurrence of RG-LRU, `state = gate * state + hidden`, in float32; hidden states `[rows, columns, width]`."""

    def step(inputs: Sequence[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        hidden, gate = inputs
        after = gate.float() * state + hidden.float()
        return after.to(hidden.dtype), after

    def chunk(inputs: Sequence[Tensor], state: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden, gate = inputs
        state = torch.zeros_like(hidden[:, 0], dtype=torch.float32) if state is None else state
        outputs = []
        for column in range(hidden.shape[1]):
            output, state = step((hidden[:, column], gate[:, column]), state)
            outputs.append(output)
        return torch.stack(outputs, dim=1), state

    scan = Scan((hidden_states, recurrent_gate * ~reset), step, chunk)
    states = current_scans()
    if states is None:  # a model of its own, in a pass without a cache
        return chunk(scan.inputs, recurrent_states)
    return states.run_scan(scan)
