"""The states of all layers of one network, slot by slot: beginning and ending passes, copies to start from, and their memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from eft_engine.models.scans import Scan
from eft_engine.models.state_rows import StateKey, StateRows, StateSlot
from eft_engine.models.states import Convolution, Recurrence

MAX_KEPT = 3
"""Copies of states that a slot keeps at a time, the oldest go first."""


class SlotStates:
    """Empty for a network of attention layers alone; layers are known from the first pass on."""

    def __init__(self) -> None:
        self.num_slots = 0
        self._rows: StateRows | None = None
        self._convolutions: dict[StateKey, Convolution] = {}
        self._recurrences: dict[StateKey, Recurrence] = {}
        self._layer: StateKey = ()
        self._num_scans = 0

    def __bool__(self) -> bool:
        return bool(self._convolutions or self._recurrences)

    @property
    def bytes_per_slot(self) -> int:
        """Bytes that a slot takes, with as many copies as it may keep."""
        own = sum(buffer[:1].nbytes for part in self._parts() for buffer in part.buffers)
        return own + MAX_KEPT * sum(part.copy_bytes for part in self._parts())

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots, without copies that are kept."""
        return sum(buffer.nbytes for part in self._parts() for buffer in part.buffers)

    def _parts(self) -> Iterable[Convolution | Recurrence]:
        return (*self._convolutions.values(), *self._recurrences.values())

    # ---- a pass ------------------------------------------------------------------------------------------------------

    def begin(self, slots: Sequence[StateSlot], settled: Sequence[int], provisional: Sequence[int]) -> None:
        """A pass feeds these adjacent slots so many tokens that are settled by it, and so many that may be taken back."""
        self.fit(self.num_slots)
        for slot in slots:
            if self:
                self._resume(slot)
            else:  # attention alone, or the first pass of all
                slot.settled_len = slot.read_len = slot.length
        self._rows = StateRows.of(slots, settled, provisional)

    def end(self, slots: Sequence[StateSlot]) -> None:
        """The pass is done, and its slots have their new lengths."""
        assert self._rows is not None, "a pass began"
        for slot, pending in zip(slots, self._rows.pending_after, strict=True):
            slot.read_len = slot.length
            slot.settled_len = slot.length - pending
            if slot.settled_len in slot.keep_at and self:
                self._keep(slot)
        self._rows = None

    def break_off(self, slots: Sequence[StateSlot]) -> None:
        """The pass failed, some layers have done it and some have not: its slots go back to a copy, or to their start."""
        self._rows = None
        if self:
            for slot in slots:
                slot.length = slot.kept_len(slot.length)
                slot.settled_len = slot.read_len = -1

    def _resume(self, slot: StateSlot) -> None:
        """Bring the states of a slot to a length that the pass can begin from."""
        slot.kept = {length: kept for length, kept in slot.kept.items() if length <= slot.length}
        if slot.length == slot.read_len or slot.settled_len <= slot.length < slot.read_len:
            return
        kept = slot.kept.get(slot.length)
        assert kept is not None or slot.length == 0, f"no state was kept at {slot.length}"
        for parts in (self._convolutions, self._recurrences):
            for key, part in parts.items():
                part.put(slot.index, torch.zeros(()) if kept is None else kept[key])
        slot.settled_len = slot.read_len = slot.length

    def _keep(self, slot: StateSlot) -> None:
        copies: dict[StateKey, Tensor] = {key: part.copy_of(slot.index) for key, part in self._convolutions.items()}
        is_last = slot.settled_len == slot.read_len
        for key, part in self._recurrences.items():
            copies[key] = part.copy_of(slot.index) if is_last else part.settled_copy_of(slot.index)
        slot.kept[slot.settled_len] = copies
        while len(slot.kept) > MAX_KEPT:
            del slot.kept[next(iter(slot.kept))]

    # ---- what layers ask ---------------------------------------------------------------------------------------------

    def extend_convolution(self, layer: StateKey, new: Tensor, width: int) -> Tensor:
        """Take in `[rows, channels, columns]`; returns them behind the `width` inputs before them."""
        assert self._rows is not None, "layers are asked inside a pass"
        if layer not in self._convolutions:
            self._convolutions[layer] = Convolution(self.num_slots, new, width)
        return self._convolutions[layer].extend(new, self._rows)

    def enter_recurrence(self, layer: StateKey) -> None:
        """What is scanned next belongs to this layer."""
        self._layer, self._num_scans = layer, 0

    @property
    def was_scanned(self) -> bool:
        """Whether something was scanned since a recurrence was entered."""
        return self._num_scans > 0

    def run_scan(self, scan: Scan) -> tuple[Tensor, Tensor]:
        """See `ScanRunner`."""
        assert self._rows is not None, "layers are asked inside a pass"
        key = (*self._layer, self._num_scans)
        self._num_scans += 1
        if key not in self._recurrences:
            _, like = scan.chunk([each[:, :1] for each in scan.inputs], None)
            self._recurrences[key] = Recurrence(self.num_slots, like)
        recurrence = self._recurrences[key]
        outputs = recurrence.run(scan, self._rows)
        return outputs, recurrence.last[self._rows.span]

    # ---- between passes ----------------------------------------------------------------------------------------------

    def keepable_len(self, slot: StateSlot, length: int) -> int:
        """The longest beginning, up to `length` tokens, that has a state."""
        return slot.length if slot.length <= length else slot.kept_len(length)

    def resumable_len(self, slot: StateSlot, length: int) -> int:
        """The longest beginning, up to `length` tokens, that a slot can go on from itself."""
        if 0 <= slot.settled_len <= length <= slot.read_len:
            return length
        return slot.kept_len(length)

    def copy(self, source: StateSlot, target: StateSlot, length: int) -> None:
        """Let `target` begin with the first `length` tokens of `source`, which are `keepable_len`."""
        target.kept = {at: kept for at, kept in source.kept.items() if at <= length}
        if length and length not in target.kept:
            self._settle(source)
            self._keep(source)
            target.kept[length] = source.kept[length]
        target.settled_len = target.read_len = -1  # it resumes from the copy

    def _settle(self, slot: StateSlot) -> None:
        self.fit(self.num_slots)
        self._resume(slot)
        for part in self._parts():
            part.settle(slot)
        slot.settled_len = slot.read_len = slot.length

    def swap(self, first: int, second: int) -> None:
        """Let two slots trade places."""
        for part in self._parts():
            for buffer in part.buffers:
                buffer[[first, second]] = buffer[[second, first]]

    def erase(self, index: int) -> None:
        """Overwrite a slot."""
        for part in self._parts():
            for buffer in part.buffers:
                if index < len(buffer):
                    buffer[index].zero_()

    def fit(self, num_slots: int) -> None:
        """Have so many slots."""
        self.num_slots = num_slots
        for part in self._parts():
            part.fit(num_slots)
