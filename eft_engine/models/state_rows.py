"""Slots of networks with more than keys and values, and what layers that keep a state need to know of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from eft_engine.models.network import KVSlot

StateKey = tuple[int, ...]
"""Layer, state of that layer, and for recurrences the how manieth one of the layer."""


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

    def kept_len(self, length: int) -> int:
        """The longest beginning, up to `length` tokens, of which states are kept."""
        return max((own for own in self.kept if own <= length), default=0)


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
