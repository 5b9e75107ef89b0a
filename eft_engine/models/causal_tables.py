"""Causal masks that attention modules hold as tables (GPT-Neo): cut row by row.

Such a module cuts its table `[1, 1, length, length]` by the number of queries and keys, as if all rows of a batch were of one
length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eft_engine.models.layout import current_layout
from eft_engine.transfer import upload

_NAME = "bias"


class _RowTable:
    """Stands for a table: the cut for a pass over slots has each row's own positions."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __getitem__(self, cut: Any) -> Tensor:
        layout = current_layout()
        if layout is None:
            return self.table[cut]
        positions = upload(layout.positions, self.table.device)
        rows = self.table[0, 0][positions]  # [rows, columns, length]
        missing = layout.window - rows.shape[-1]
        if missing > 0:  # padding behind the longest text
            rows = nn.functional.pad(rows, (0, missing))
        return rows[:, None, :, : layout.window]


class CausalTables:
    """The tables of a model, cut row by row until `give_back`."""

    def __init__(self, model: nn.Module) -> None:
        self._tables: list[tuple[nn.Module, Tensor]] = [
            (module, table)
            for module in model.modules()
            if (table := module._buffers.get(_NAME)) is not None and _is_causal_table(table)
        ]

    def take(self) -> None:
        """Cut them row by row."""
        for module, table in self._tables:
            del module._buffers[_NAME]
            setattr(module, _NAME, _RowTable(table))

    def give_back(self) -> None:
        """Let the modules cut them."""
        for module, table in self._tables:
            if _NAME not in module._buffers:
                delattr(module, _NAME)
                module.register_buffer(_NAME, table, persistent=False)


def _is_causal_table(table: Tensor) -> bool:
    return table.ndim == 4 and table.dtype == torch.bool and table.shape[0] == table.shape[1] == 1
