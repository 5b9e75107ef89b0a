"""Key/value cache with one slot per stream and per-row lengths. The only file that touches transformers' cache classes.

Each layer holds one buffer `[slots, kv_heads, max_len, head_dim]` for keys and one for values. A *slot* belongs to one stream of
tokens; its `length` says how many of its positions are valid, and that integer is the whole state: taking tokens back is
`truncate(length)`, without a copy. Rows of one forward pass have different lengths. They are written at their own positions and
read through a mask; nothing is padded on the left, so positions never shift.

A forward pass works on *adjacent* slots, so that it reads the buffers through a view instead of gathering rows: `arrange` moves
slots together when the set of rows changes, which happens when requests come and go and not at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from eft_engine.models.network import KVSlot
from eft_engine.transfer import upload

LENGTH_STEP = 256
"""Buffers grow to a multiple of this many positions (and at least by half), so that growing stays rare."""


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
    _on_device: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _masks: dict[tuple[int | None, int, torch.dtype, torch.device], Tensor | None] = field(default_factory=dict)

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
    def needed_len(self) -> int:
        """Positions that a buffer must have, padded columns included."""
        return self.window

    def indices(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Slot and position of every written token, `[rows, 1]` and `[rows, columns]`, on `device`."""
        if device not in self._on_device:
            slots = self.first_slot + torch.arange(self.num_rows)
            self._on_device[device] = (upload(slots[:, None], device), upload(self.write_positions, device))
        return self._on_device[device]

    def mask(
        self, *, sliding_window: int | None, num_groups: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor | None:
        """Additive attention mask `[rows, 1, num_groups * columns, window]`, or None when every row may read everything.

        A token at position p reads positions up to p, and with a sliding window of n only the last n of them. The query axis
        is repeated for the `num_groups` query heads that share a key head (see `attention`).
        """
        if sliding_window is not None and sliding_window >= self.window:
            sliding_window = None
        if self.unmasked and sliding_window is None:
            return None
        key = (sliding_window, num_groups, dtype, device)
        if key not in self._masks:
            query = upload(self.positions, device)[:, None, :, None]  # [rows, 1, columns, 1]
            keys = torch.arange(self.window, device=device)
            visible = keys <= query
            if sliding_window is not None:
                visible &= keys > query - sliding_window
            mask = torch.zeros(visible.shape, dtype=dtype, device=device)
            mask.masked_fill_(~visible, torch.finfo(dtype).min)
            self._masks[key] = mask.repeat(1, 1, num_groups, 1) if mask.shape[2] > 1 else mask
        return self._masks[key]


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's buffers, made when the layer first sees keys (then its device, dtype and head sizes are known)."""

    keys: Tensor | None
    values: Tensor | None

    def __init__(self, cache: SlotKVCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers; `*_states` are `[rows, kv_heads, columns, head_dim]` and give dtype, device and head sizes."""
        # Zeros, not empty memory: masked positions get weight 0, and 0 * NaN would still be NaN.
        size = (self._cache.num_slots, self._cache.max_len)
        self.keys = key_states.new_zeros(size[0], key_states.shape[1], size[1], key_states.shape[3])
        self.values = value_states.new_zeros(size[0], value_states.shape[1], size[1], value_states.shape[3])
        self.is_initialized = True
        self._cache.buffers_version += 1

    def fit(self) -> None:
        """Bring existing buffers to the size that the cache needs now, keeping what they hold."""
        if self.keys is None or self.values is None:
            return
        if self.keys.shape[::2] != (self._cache.num_slots, self._cache.max_len):
            held = (self.keys, self.values)
            try:
                self.lazy_initialization(*held)
            except BaseException:  # out of memory: what is held stays
                self.keys, self.values = held
                raise
            for new, old in zip((self.keys, self.values), held, strict=True):
                num_slots, max_len = min(new.shape[0], old.shape[0]), min(new.shape[2], old.shape[2])
                new[:num_slots, :, :max_len] = old[:num_slots, :, :max_len]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write `[rows, kv_heads, columns, head_dim]` states; return views `[rows, kv_heads, window, head_dim]`."""
        layout = self._cache.layout
        assert layout is not None, "the cache is written inside LanguageModel.forward only"
        if self.keys is None:
            self.lazy_initialization(key_states, value_states)
        self.fit()
        assert self.keys is not None
        assert self.values is not None
        slots, positions = layout.indices(key_states.device)
        self.keys[slots, :, positions] = key_states.transpose(1, 2)
        self.values[slots, :, positions] = value_states.transpose(1, 2)
        rows = slice(layout.first_slot, layout.first_slot + layout.num_rows)
        return self.keys[rows, :, : layout.window], self.values[rows, :, : layout.window]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Window and offset; asked only by mask code that our attention replaces."""
        layout = self._cache.layout
        return (layout.window if layout else query_length), 0

    def get_seq_length(self) -> int:
        """A batch has no single length: positions are always passed explicitly."""
        return 0

    def get_max_length(self) -> int:
        """No maximum: the buffers grow."""
        return -1


class SlotKVCache(Cache):  # type: ignore[misc]
    """The cache of one network: one `SlotLayer` per layer, and the slots."""

    def __init__(self, num_layers: int) -> None:
        self.num_slots = 0
        self.max_len = 0
        self.layout: BatchLayout | None = None
        self.buffers_version = 0
        """Grows when buffers are made anew, at other addresses."""
        self._slots: list[KVSlot | None] = []
        super().__init__(layers=[SlotLayer(self) for _ in range(num_layers)])

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(
            buffer.nbytes for layer in self.layers if layer.is_initialized for buffer in (layer.keys, layer.values)
        )

    def num_bytes_with(self, needed_len: int) -> int:
        """Bytes of all buffers once another slot is in use, and slots have the length that they or the new one may need.

        0 before the first forward pass, which makes the buffers.
        """
        position_bytes: int = sum(
            buffer.shape[1] * buffer.shape[3] * buffer.element_size()
            for layer in self.layers
            if layer.is_initialized
            for buffer in (layer.keys, layer.values)
        )
        num_slots = self.num_slots if None in self._slots or len(self._slots) < self.num_slots else 2 * self.num_slots
        reserved = max([needed_len, *(slot.reserved_len for slot in self._slots if slot is not None)])
        return max(1, num_slots) * max(self.max_len, _rounded_len(reserved)) * position_bytes

    def allocate(self) -> KVSlot:
        """A free slot, empty."""
        if None not in self._slots:
            self._slots.append(None)
            # Doubling keeps the number of copies logarithmic in the number of slots.
            if len(self._slots) > self.num_slots:
                self.num_slots = max(1, 2 * self.num_slots)
        slot = KVSlot(self._slots.index(None))
        self._slots[slot.index] = slot
        return slot

    @torch.inference_mode()
    def release(self, slot: KVSlot, *, erase: bool = False) -> None:
        """Give the slot back. `erase` overwrites it: needed when it may hold NaN, which masking alone does not silence."""
        assert self._slots[slot.index] is slot, "a slot is released once"
        self._slots[slot.index] = None
        if erase:
            for layer in self.layers:
                if layer.is_initialized and slot.index < layer.keys.shape[0]:
                    layer.keys[slot.index].zero_()
                    layer.values[slot.index].zero_()

    @torch.inference_mode()
    def trim(self) -> None:
        """Give back the memory of free slots behind the last one in use, and of positions that no slot has reached."""
        while self._slots and self._slots[-1] is None:
            self._slots.pop()
        self.num_slots = len(self._slots)
        self.max_len = 0
        self.reserve(max((slot.length for slot in self._slots if slot is not None), default=0))
        self.fit()

    def keepable_len(self, slot: KVSlot, length: int) -> int:
        """All of them: positions are kept apart."""
        return length

    @torch.inference_mode()
    def copy_prefix(self, source: KVSlot, target: KVSlot, length: int) -> None:
        """Let `target`, which is empty, begin with the first `length` positions of `source`."""
        assert length <= source.length, f"cannot copy {length} of {source.length} positions"
        assert target.length == 0, "a prefix is copied to an empty slot"
        for buffer in self._buffers():
            buffer[target.index, :, :length] = buffer[source.index, :, :length]
        target.length = length

    def reserve(self, needed_len: int) -> None:
        """Have at least `needed_len` positions per slot from the next write on."""
        if needed_len > self.max_len:
            reserved = max((slot.reserved_len for slot in self._slots if slot is not None), default=0)
            wanted = self.max_len + self.max_len // 2
            self.max_len = _rounded_len(max(needed_len, min(wanted, reserved) if reserved else wanted))

    def lengths_at(self, num_places: int) -> list[int]:
        """Valid positions at the places 0, 1, ...; 0 at those that are free."""
        held = [0 if slot is None else slot.length for slot in self._slots[:num_places]]
        return held + [0] * (num_places - len(held))

    def arrange(self, slots: Sequence[KVSlot], *, from_first: bool = False) -> list[KVSlot]:
        """Make these slots adjacent, moving as few as possible, or put them at the places from 0 on; returns them in their order
        in memory.
        """
        wanted = set(slots)
        assert len(wanted) == len(slots), "a slot takes part once in a forward pass"
        starts = range(1 if from_first else len(self._slots) - len(slots) + 1)
        start = max(starts, key=lambda first: sum(slot in wanted for slot in self._slots[first : first + len(slots)]))
        places = range(start, start + len(slots))
        outside = [slot for slot in slots if slot.index not in places]
        for place in places:
            if self._slots[place] not in wanted:
                self._swap(place, outside.pop().index)
        return sorted(slots, key=lambda slot: slot.index)

    @torch.inference_mode()
    def _swap(self, a: int, b: int) -> None:
        first, second = self._slots[a], self._slots[b]
        used = max(slot.length for slot in (first, second) if slot is not None)
        for buffer in self._buffers():
            held = buffer[a, :, :used].clone()
            buffer[a, :, :used] = buffer[b, :, :used]
            buffer[b, :, :used] = held
        self._slots[a], self._slots[b] = second, first
        for index in (a, b):
            slot = self._slots[index]
            if slot is not None:
                slot.index = index

    def fit(self) -> None:
        """Bring the buffers to the size that is needed now."""
        for layer in self.layers:
            layer.fit()

    def _buffers(self) -> list[Tensor]:
        """All buffers, large enough for every slot: one that was allocated since the last write is part of them too."""
        self.fit()
        return [buffer for layer in self.layers if layer.is_initialized for buffer in (layer.keys, layer.values)]


def _rounded_len(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP
