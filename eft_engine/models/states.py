"""The memory of layers that keep a state: convolutions over the last tokens, and recurrences (delta nets, Mamba, ...).

A state has no positions, so tokens cannot be taken back from it one by one. What may be taken back is known beforehand: drafts.
So a slot has two states, the one behind its last *settled* token and the one behind the last token that it has read, and keeps
what the recurrences were fed with in between. When drafts are refused, the recurrence alone is computed again from the settled
state, up to the last accepted token; no weights are read for that. Rows of one pass have different numbers of tokens: a row's
state is taken behind its own last one, padding never enters it.

States are also copied where others may begin (`KVSlot.keep_at`), for the prefix cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eft_engine.models.network import KVSlot
from eft_engine.models.scans import Scan

StepThrough = Callable[[Sequence[Tensor], Tensor], Tensor]
"""A recurrence over one token: inputs `[rows, ...]` and a state give the state behind it."""

StateKey = tuple[int, ...]
"""Layer, state of that layer, and for recurrences the how manieth one of the layer."""

MAX_KEPT = 3
"""Copies of states that a slot keeps at a time, the oldest go first."""

STEPWISE_LEN = 16
"""Blocks up to this long are computed token by token, all rows together; longer ones whole, rows of one length together."""


@dataclass(eq=False)
class StateSlot(KVSlot):
    """A slot, and what networks with more than keys and values need to know of it.

    `settled_len` and `read_len` are the lengths at which its two states stand; after a rejection `length` lies between them.
    """

    settled_len: int = 0
    read_len: int = 0
    kept: dict[int, dict[StateKey, Tensor]] = field(default_factory=dict)
    """By length: copies of all states at that length."""
    token_ids: list[int] = field(default_factory=list)
    """What it has read; only where it may have to be read again (see `long_rope`)."""
    is_long: bool = False
    """Its keys have the rotary factors for long texts."""

    @property
    def num_pending(self) -> int:
        """Tokens behind the settled state that count."""
        return self.length - self.settled_len


@dataclass(frozen=True)
class StateRows:
    """What layers with states need to know of a pass: its rows lie from `first_slot` on. By row: tokens that are settled by it,
    tokens that may be taken back, tokens that were read before and are not settled yet, and whether some of those were refused.
    """

    first_slot: int
    settled: tuple[int, ...]
    provisional: tuple[int, ...]
    pending: tuple[int, ...]
    refused: tuple[bool, ...]

    @classmethod
    def of(cls, slots: Sequence[StateSlot], settled: Sequence[int], provisional: Sequence[int]) -> StateRows:
        """For feeding so many tokens to each of these adjacent slots."""
        return cls(
            slots[0].index,
            tuple(settled),
            tuple(provisional),
            tuple(slot.num_pending for slot in slots),
            tuple(slot.length != slot.read_len for slot in slots),
        )

    @property
    def span(self) -> slice:
        """Its slots, in buffers of all slots."""
        return slice(self.first_slot, self.first_slot + len(self.settled))

    @property
    def is_plain(self) -> bool:
        """Every row has as many tokens as the others, and all of them are settled and always were."""
        return not any(self.provisional) and not any(self.pending) and len(set(self.settled)) == 1

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each row."""
        return tuple(map(sum, zip(self.settled, self.provisional, strict=True)))

    @property
    def pending_after(self) -> tuple[int, ...]:
        """Tokens of each row that are not settled behind the pass. A settled token settles those before it."""
        return tuple(
            (0 if settled else pending) + provisional
            for settled, pending, provisional in zip(self.settled, self.pending, self.provisional, strict=True)
        )


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

    def extend(self, new: Tensor, rows: StateRows) -> Tensor:
        """Take in `[rows, channels, columns]`; returns them behind the `width` inputs before them."""
        held = self.held[rows.span]
        if rows.is_plain:
            full = torch.cat([held[..., : self.width].to(new.dtype), new], dim=-1)
            held[..., : self.width] = full[..., -self.width :]
            return full
        pending = torch.tensor(rows.pending, device=new.device)[:, None]
        before = _along_last(held, pending + torch.arange(self.width, device=new.device))
        full = torch.cat([before.to(new.dtype), new], dim=-1)
        self._make_room(max(rows.pending_after))
        held = self.held[rows.span]
        # What is to be held begins where the settled part ends, in the row's line of held (up to what counts) and new inputs.
        settled = torch.tensor(rows.settled, device=new.device)[:, None]
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

    def run(self, scan: Scan, rows: StateRows) -> Tensor:
        """Compute a pass; its outputs `[rows, columns, ...]`."""
        self._step = lambda inputs, state: scan.step(inputs, state)[1]
        span, counts = rows.span, rows.counts
        if any(rows.refused):
            self._take_back(rows)
        state = self.last[span]
        if any(rows.provisional):
            self._begin_pending(rows, state)
        columns = scan.inputs[0].shape[1]
        if columns == 1:
            output, after = scan.step([each[:, 0] for each in scan.inputs], state)
            state.copy_(after)
            output = output[:, None]
        elif columns <= STEPWISE_LEN:
            output = self._stepwise(scan, rows, state)
        else:
            output = self._by_length(scan, rows, state)
        if any(rows.provisional):
            self._keep_inputs(scan.inputs, rows, counts)
        return output

    def _take_back(self, rows: StateRows) -> None:
        """Go back to the last token that counts, in rows where some were refused."""
        index = [rows.first_slot + row for row, refused in enumerate(rows.refused) if refused]
        counting = [number for number, refused in zip(rows.pending, rows.refused, strict=True) if refused]
        self.last[index] = self._replayed(index, counting)

    def _replayed(self, index: Sequence[int], counting: Sequence[int]) -> Tensor:
        """States of these slots behind so many of their pending tokens."""
        assert self.settled is not None, "tokens are pending"
        assert self._step is not None, "what is pending was computed"
        state = self.settled[index]
        limit = torch.tensor(counting, device=state.device)
        for column in range(max(counting)):
            after = self._step([held[index, column] for held in self.inputs], state.clone())
            state = torch.where(_beside(limit > column, state), after.to(state.dtype), state)
        return state

    def _begin_pending(self, rows: StateRows, state: Tensor) -> None:
        """Rows that have nothing pending yet: they are settled where they are."""
        if self.settled is None:
            self.settled = torch.zeros_like(self.last)
        fresh = [row for row, pending in enumerate(rows.pending) if pending == 0]
        self.settled[[rows.first_slot + row for row in fresh]] = state[fresh]

    def _stepwise(self, scan: Scan, rows: StateRows, state: Tensor) -> Tensor:
        """Token by token, all rows together."""
        counts = torch.tensor(rows.counts, device=state.device)
        settled = torch.tensor(rows.settled, device=state.device)
        is_even = len(set(rows.counts)) == 1
        keeps = self.settled[rows.span] if self.settled is not None and any(rows.provisional) else None
        outputs = []
        for column in range(scan.inputs[0].shape[1]):
            output, after = scan.step([each[:, column] for each in scan.inputs], state.clone())
            outputs.append(output)
            state.copy_(
                after if is_even else torch.where(_beside(counts > column, state), after.to(state.dtype), state)
            )
            if keeps is not None and column < max(rows.settled):
                keeps.copy_(torch.where(_beside(settled == column + 1, state), state, keeps))
        return torch.stack(outputs, dim=1)

    def _by_length(self, scan: Scan, rows: StateRows, state: Tensor) -> Tensor:
        """Rows of one length together: what is settled whole, what is not token by token."""
        groups: dict[tuple[int, int], list[int]] = {}
        for row, lengths in enumerate(zip(rows.settled, rows.provisional, strict=True)):
            groups.setdefault(lengths, []).append(row)
        whole: Tensor | None = None
        for (settled, provisional), own in groups.items():
            inputs = [each[own] for each in scan.inputs]
            pieces, after = [], state[own]
            if settled:
                output, after = scan.chunk([each[:, :settled] for each in inputs], after)
                pieces.append(output)
                if provisional:
                    assert self.settled is not None, "a pass with tokens that may be taken back has settled states"
                    self.settled[[rows.first_slot + row for row in own]] = after.to(state.dtype)
            for column in range(settled, settled + provisional):
                output, after = scan.step([each[:, column] for each in inputs], after.clone())
                pieces.append(output[:, None])
            state[own] = after.to(state.dtype)
            output = torch.cat(pieces, dim=1)
            if whole is None:
                whole = output.new_zeros(len(state), scan.inputs[0].shape[1], *output.shape[2:])
            whole[own, : output.shape[1]] = output
        assert whole is not None, "a pass has rows"
        return whole

    def _keep_inputs(self, inputs: Sequence[Tensor], rows: StateRows, counts: Sequence[int]) -> None:
        """Keep what pending tokens were fed with."""
        num_pending = max(rows.pending_after)
        num_slots = len(self.last)
        if not self.inputs:
            self.inputs = [each.new_zeros(num_slots, 0, *each.shape[2:]) for each in inputs]
        if self.inputs[0].shape[1] < num_pending:
            self.inputs = [_longer(held, num_pending) for held in self.inputs]
        slots, places, from_rows, columns = [], [], [], []
        for row, (settled, provisional, count) in enumerate(zip(rows.settled, rows.provisional, counts, strict=True)):
            start = 0 if settled else rows.pending[row]
            for offset in range(provisional):
                slots.append(rows.first_slot + row)
                places.append(start + offset)
                from_rows.append(row)
                columns.append(count - provisional + offset)
        for held, new in zip(self.inputs, inputs, strict=True):
            held[slots, places] = new[from_rows, columns].to(held.dtype)

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


def _beside(flags: Tensor, state: Tensor) -> Tensor:
    """Flags `[rows]` in a shape that broadcasts against a state `[rows, ...]`."""
    return flags.reshape(-1, *[1] * (state.ndim - 1))


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
