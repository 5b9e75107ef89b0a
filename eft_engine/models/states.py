"""The memory of layers that keep a state: convolutions over the last tokens, and recurrences (delta nets, Mamba, ...).

A state has no positions, so tokens cannot be taken back from it one by one. What may be taken back is known beforehand: drafts.
So a slot has two states, the one behind its last *settled* token and the one behind the last token that it has read, and keeps
what the recurrences were fed with in between. When drafts are refused, the recurrence alone is computed again from the settled
state, up to the last accepted token; no weights are read for that. Rows of one pass have different numbers of tokens: a row's
state is taken behind its own last one, padding never enters it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eft_engine.models.scans import Scan
from eft_engine.models.state_rows import StateRows, StateSlot
from eft_engine.transfer import upload

StepThrough = Callable[[Sequence[Tensor], Tensor], Tensor]
"""A recurrence over one token: inputs `[rows, ...]` and a state give the state behind it."""

STEPWISE_LEN = 16
"""Blocks up to this long are computed token by token, all rows together; longer ones whole, rows of one length together."""


class Convolution:
    """The last inputs of a short convolution over tokens: per slot the kernel's width up to the settled token, then the pending
    ones.
    """

    def __init__(self, num_slots: int, like: Tensor, width: int) -> None:
        self.width = width
        self.held = like.new_zeros(num_slots, like.shape[1], width)  # [slots, channels, width + pending]

    @property
    def buffers(self) -> list[Tensor]:
        """Everything that is held, `[slots, ...]` each."""
        return [self.held]

    def fit(self, num_slots: int) -> None:
        """Have so many slots."""
        self.held = _resized(self.held, num_slots)

    @property
    def copy_bytes(self) -> int:
        """Bytes of a copy of one slot's state."""
        return self.held[:1, :, : self.width].nbytes

    def extend(self, new: Tensor, rows: StateRows) -> Tensor:
        """Take in `[rows, channels, columns]`; returns them behind the `width` inputs before them."""
        held = self.held[rows.span]
        if rows.is_plain:
            full = torch.cat([held[..., : self.width].to(new.dtype), new], dim=-1)
            held[..., : self.width] = full[..., -self.width :]
            return full
        pending = upload(rows.pending, new.device)[:, None]
        before = _along_last(held, pending + torch.arange(self.width, device=new.device))
        full = torch.cat([before.to(new.dtype), new], dim=-1)
        self._make_room(max(rows.pending_after))
        held = self.held[rows.span]
        # What is to be held begins where the settled part ends, in the row's line of held (up to what counts) and new inputs.
        settled = upload(rows.settled, new.device)[:, None]
        start = torch.where(settled > 0, pending + settled, 0)
        place = start + torch.arange(held.shape[-1], device=new.device)
        counting = self.width + pending
        place = torch.where(place < counting, place, place - counting + held.shape[-1])
        line = torch.cat([held, new.to(held.dtype)], dim=-1)
        held.copy_(_along_last(line, place.clamp(max=line.shape[-1] - 1)))
        return full

    def _make_room(self, num_pending: int) -> None:
        missing = self.width + num_pending - self.held.shape[-1]
        if missing > 0:
            self.held = torch.nn.functional.pad(self.held, (0, missing))

    def settle(self, slot: StateSlot) -> None:
        """Settle all that counts."""
        start = slot.num_pending
        self.held[slot.index, :, : self.width] = self.held[slot.index, :, start : start + self.width].clone()

    def copy_of(self, index: int) -> Tensor:
        """The settled state of a slot."""
        return self.held[index, :, : self.width].clone()

    def put(self, index: int, state: Tensor) -> None:
        """Make this the settled state of a slot."""
        self.held[index, :, : self.width] = state


class Recurrence:
    """The states of one recurrence: per slot the settled one and the last one, and the inputs of pending tokens."""

    def __init__(self, num_slots: int, like: Tensor) -> None:
        self.last = like.new_zeros(num_slots, *like.shape[1:])
        self.settled: Tensor | None = None
        self.inputs: list[Tensor] = []  # of pending tokens, [slots, pending, ...] each
        self._step: StepThrough | None = None

    @property
    def buffers(self) -> list[Tensor]:
        """Everything that is held, `[slots, ...]` each."""
        return [self.last, *([] if self.settled is None else [self.settled]), *self.inputs]

    def fit(self, num_slots: int) -> None:
        """Have so many slots."""
        self.last = _resized(self.last, num_slots)
        self.settled = None if self.settled is None else _resized(self.settled, num_slots)
        self.inputs = [_resized(held, num_slots) for held in self.inputs]

    @property
    def copy_bytes(self) -> int:
        """Bytes of a copy of one slot's state."""
        return self.last[:1].nbytes

    def run(self, scan: Scan, rows: StateRows) -> Tensor:
        """Compute a pass; its outputs `[rows, columns, ...]`."""
        self._step = lambda inputs, state: scan.step(inputs, state)[1]
        if any(rows.refused):
            self._take_back(rows)
        state = self.last[rows.span]
        if any(rows.provisional):
            self._begin_pending(rows, state)
        output = (self._stepwise if scan.inputs[0].shape[1] <= STEPWISE_LEN else self._by_length)(scan, rows, state)
        if any(rows.provisional):
            self._keep_inputs(scan.inputs, rows)
        return output

    def _take_back(self, rows: StateRows) -> None:
        """Go back to the last token that counts, in rows where some were refused."""
        slots = [rows.first_slot + row for row, refused in enumerate(rows.refused) if refused]
        counting = [number for number, refused in zip(rows.pending, rows.refused, strict=True) if refused]
        self.last[self._places(slots)] = self._replayed(slots, counting)

    def _replayed(self, slots: Sequence[int], counting: Sequence[int]) -> Tensor:
        """States of these slots behind so many of their pending tokens."""
        assert self.settled is not None, "tokens are pending"
        assert self._step is not None, "what is pending was computed"
        state = self.settled[self._places(slots)]
        for column in range(max(counting)):
            own = [row for row, number in enumerate(counting) if number > column]
            places, rows = self._places([slots[row] for row in own]), self._places(own)
            state[rows] = self._step([held[places, column] for held in self.inputs], state[rows]).to(state.dtype)
        return state

    def _begin_pending(self, rows: StateRows, state: Tensor) -> None:
        """Rows that have nothing pending yet: they are settled where they are."""
        if self.settled is None:
            self.settled = torch.zeros_like(self.last)
        fresh = [row for row, pending in enumerate(rows.pending) if pending == 0]
        if len(fresh) == len(rows.pending):
            self.settled[rows.span] = state
        elif fresh:
            self.settled[self._places([rows.first_slot + row for row in fresh])] = state[self._places(fresh)]

    def _stepwise(self, scan: Scan, rows: StateRows, state: Tensor) -> Tensor:
        """Token by token, all rows together that have one left."""
        counts, outputs = rows.counts, []
        for column in range(scan.inputs[0].shape[1]):
            inputs = [each[:, column] for each in scan.inputs]
            own = [row for row, count in enumerate(counts) if count > column]
            if len(own) == len(counts):
                output, after = scan.step(inputs, state)
                if after is not state:
                    state.copy_(after)
            else:
                places = self._places(own)
                part, after = scan.step([each[places] for each in inputs], state[places])
                state[places] = after.to(state.dtype)
                output = part.new_zeros(len(counts), *part.shape[1:])
                output[places] = part
            outputs.append(output)
            if any(rows.provisional):
                self._settle_rows(
                    rows, [row for row, settled in enumerate(rows.settled) if settled == column + 1], state
                )
        return outputs[0][:, None] if len(outputs) == 1 else torch.stack(outputs, dim=1)

    def _settle_rows(self, rows: StateRows, own: Sequence[int], state: Tensor) -> None:
        """Of these rows, `state` is the settled one."""
        if own:
            assert self.settled is not None, "a pass with tokens that may be taken back has settled states"
            self.settled[self._places([rows.first_slot + row for row in own])] = state[self._places(own)]

    def _by_length(self, scan: Scan, rows: StateRows, state: Tensor) -> Tensor:
        """Rows of one length together: what is settled whole, what is not token by token."""
        groups: dict[tuple[int, int], list[int]] = {}
        for row, lengths in enumerate(zip(rows.settled, rows.provisional, strict=True)):
            groups.setdefault(lengths, []).append(row)
        whole: Tensor | None = None
        for (settled, provisional), own in groups.items():
            places = self._places(own)
            inputs = [each[places] for each in scan.inputs]
            pieces = []
            if settled:
                output, after = scan.chunk([each[:, :settled] for each in inputs], state[places])
                state[places] = after.to(state.dtype)
                pieces.append(output)
                if provisional:
                    self._settle_rows(rows, own, state)
            for column in range(settled, settled + provisional):
                output, after = scan.step([each[:, column] for each in inputs], state[places])
                state[places] = after.to(state.dtype)
                pieces.append(output[:, None])
            output = torch.cat(pieces, dim=1)
            if whole is None:
                whole = output.new_zeros(len(state), scan.inputs[0].shape[1], *output.shape[2:])
            whole[places, : output.shape[1]] = output
        assert whole is not None, "a pass has rows"
        return whole

    def _keep_inputs(self, inputs: Sequence[Tensor], rows: StateRows) -> None:
        """Keep what pending tokens were fed with."""
        num_pending = max(rows.pending_after)
        if not self.inputs:
            self.inputs = [each.new_zeros(len(self.last), 0, *each.shape[2:]) for each in inputs]
        if self.inputs[0].shape[1] < num_pending:
            self.inputs = [_longer(held, num_pending) for held in self.inputs]
        # By token: its slot, its place among those that are pending there, its row, and its column.
        tokens = [
            (rows.first_slot + row, (0 if settled else pending) + offset, row, settled + offset)
            for row, (settled, provisional, pending) in enumerate(
                zip(rows.settled, rows.provisional, rows.pending, strict=True)
            )
            for offset in range(provisional)
        ]
        slots, places, from_rows, columns = (self._places(each) for each in zip(*tokens, strict=True))
        for held, new in zip(self.inputs, inputs, strict=True):
            held[slots, places] = new[from_rows, columns].to(held.dtype)

    def _places(self, indices: Sequence[int]) -> Tensor:
        return upload(list(indices), self.last.device, dtype=torch.long)

    def settle(self, slot: StateSlot) -> None:
        """Settle all that counts."""
        if slot.length != slot.read_len:
            self.last[slot.index] = self._replayed([slot.index], [slot.num_pending])[0]

    def copy_of(self, index: int) -> Tensor:
        """The last state of a slot that has nothing pending."""
        return self.last[index].clone()

    def settled_copy_of(self, index: int) -> Tensor:
        """The settled state of a slot that has something pending."""
        assert self.settled is not None, "tokens are pending"
        return self.settled[index].clone()

    def put(self, index: int, state: Tensor) -> None:
        """Make this the state of a slot, which then has nothing pending."""
        self.last[index] = state


def _along_last(values: Tensor, places: Tensor) -> Tensor:
    """`[rows, channels, length]` at places `[rows, wanted]`: `[rows, channels, wanted]`."""
    return values.gather(-1, places[:, None, :].expand(-1, values.shape[1], -1))


def _resized(held: Tensor, num_slots: int) -> Tensor:
    if len(held) == num_slots:
        return held
    new = held.new_zeros(num_slots, *held.shape[1:])
    common = min(num_slots, len(held))
    new[:common] = held[:common]
    return new


def _longer(held: Tensor, length: int) -> Tensor:
    new = held.new_zeros(held.shape[0], length, *held.shape[2:])
    new[:, : held.shape[1]] = held
    return new
