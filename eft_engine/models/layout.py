"""Where the rows of a forward pass lie: what attention, masks and layers with a state need to know of a pass, and who computes
one now.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eft_engine.models.network import KVSlot
from eft_engine.models.scans import ScanRunner
from eft_engine.transfer import upload


@dataclass
class BatchLayout:
    """Where the rows of one forward pass lie: adjacent slots from `first_slot`, and each token's position.

    `write_positions` are distinct per row, also in the padded columns of short rows; `positions` repeat a short row's last
    position there. Both `[rows, columns]`. `window` is the number of cached positions that the pass sees: every one that any row
    writes, padded columns included.
    """

    first_slot: int
    write_positions: Tensor
    positions: Tensor
    window: int
    unmasked: bool
    """Every row is one token that may read the whole window, so no mask is needed."""
    is_long: tuple[bool, ...] = ()
    """Of rows in a network with two sets of rotary factors: whether they have those for long texts (see `long_rope`)."""
    _on_device: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _masks: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    _held: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, slots: Sequence[KVSlot], num_tokens: Sequence[int]) -> BatchLayout:
        """Layout for feeding `num_tokens[row]` tokens to each of these adjacent slots."""
        lengths = torch.tensor([slot.length for slot in slots])
        counts = torch.tensor(num_tokens)
        columns = torch.arange(max(num_tokens))
        write_positions = lengths[:, None] + columns  # [rows, columns]
        positions = torch.minimum(write_positions, (lengths + counts - 1)[:, None])
        lens = [slot.length for slot in slots]
        unmasked = max(num_tokens) == 1 and min(lens) == max(lens)
        return cls(slots[0].index, write_positions, positions, max(lens) + max(num_tokens), unmasked)

    @classmethod
    def at(cls, positions: Tensor, write_positions: Tensor, places: Tensor, *, window: int) -> BatchLayout:
        """Layout over the slots from place 0 on whose positions are tensors on the device, `[rows, columns]`; `places` are
        0, 1, ... as `[rows, 1]`.
        """
        layout = cls(0, write_positions, positions, window, unmasked=False)
        layout._on_device[positions.device] = (places, write_positions)
        return layout

    @property
    def num_rows(self) -> int:
        """Rows of the forward pass."""
        return self.positions.shape[0]

    @property
    def num_columns(self) -> int:
        """Tokens of its longest row."""
        return self.positions.shape[1]

    @property
    def needed_len(self) -> int:
        """Positions that a buffer must have, padded columns included."""
        return self.window

    @property
    def rows(self) -> slice:
        """The slots of the pass, in buffers of all slots."""
        return slice(self.first_slot, self.first_slot + self.num_rows)

    def indices(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Slot and position of every written token, `[rows, 1]` and `[rows, columns]`, on `device`."""
        if device not in self._on_device:
            slots = self.first_slot + torch.arange(self.num_rows)
            self._on_device[device] = (upload(slots[:, None], device), upload(self.write_positions, device))
        return self._on_device[device]

    def mask(
        self, visible: Tensor | None, *, num_groups: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor | None:
        """Additive attention mask `[rows, 1, num_groups * columns, window]`, or None when every row may read everything.

        Args:
            visible: which positions each token may read, bool `[rows or 1, heads or 1, columns, window]`, or a mask that is
            additive
                already; None: all up to its own.
            num_groups: query heads that share a key head; the query axis is repeated for them (see `attention`).
            dtype, device: of the result.
        """
        if visible is None and self.unmasked:
            return None
        key = (id(visible), num_groups, dtype, device)
        if key not in self._masks:
            if visible is None:
                query = upload(self.positions, device)[:, None, :, None]  # [rows, 1, columns, 1]
                allowed = torch.arange(self.window, device=device) <= query
            else:
                allowed = visible.to(device)
                self._held.append(visible)  # so that no other tensor gets its id
            if allowed.dtype == torch.bool:
                mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
                mask.masked_fill_(~allowed, torch.finfo(dtype).min)
            else:
                mask = allowed.to(dtype)
            self._masks[key] = mask.repeat(1, 1, num_groups, 1) if mask.shape[2] > 1 else mask
        return self._masks[key]


@dataclass(frozen=True)
class RunningPass:
    """What a thread computes."""

    layout: BatchLayout
    scans: ScanRunner | None


_running = threading.local()


@contextmanager
def computing(layout: BatchLayout, scans: ScanRunner | None = None) -> Iterator[None]:
    """Inside the block this thread computes a pass of this layout, whose recurrences go on from where `scans` says."""
    _running.own = RunningPass(layout, scans)
    try:
        yield
    finally:
        _running.own = None


def current_layout() -> BatchLayout | None:
    """The layout of the pass that this thread computes now; None: it computes none of the engine's."""
    own: RunningPass | None = getattr(_running, "own", None)
    return None if own is None else own.layout


def current_scans() -> ScanRunner | None:
    """Where recurrences of the pass that this thread computes now have their states; None: it computes none of the engine's."""
    own: RunningPass | None = getattr(_running, "own", None)
    return None if own is None else own.scans
