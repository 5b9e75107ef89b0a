"""The slots of a network in llama.cpp, and the room that they have.

A slot is a sequence of llama.cpp's. All of them share the cells of one context; when these are full, a larger context takes the
place of the first, which costs a copy. A slot's `length` may be set back at any time: what llama.cpp holds beyond it is taken back
when the slot is used next.

Two kinds of layers cannot always go back. Those that keep a state (Mamba, gated delta nets, short convolutions) cannot forget
single tokens: there a slot keeps a copy of its states now and then, goes back to it, and reads on from there. And llama.cpp uses
cells again that a sliding window has left behind, which are missing when the window is to move back. So slots of such networks
remember their tokens, to read again what is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from eft_engine.config import LlamaCppOptions
from eft_engine.models.llama_cpp.context import LlamaCppContext
from eft_engine.models.llama_cpp.weights import LlamaCppWeights
from eft_engine.models.network import KVSlot

CELL_STEP = 256
"""Contexts have a multiple of this many cells."""

FIRST_STATES = 4
"""Sequences that a context has states for at the start; states can be large, and most engines run few requests."""

MAX_SLOTS = 256
"""Sequences that llama.cpp can tell apart in one context; who comes beyond them waits."""

STATE_INTERVAL = 16
"""So many tokens, read one by one, may follow a copy of the states before the next copy."""


@dataclass(eq=False)
class LlamaCppSlot(KVSlot):
    """The first `held` tokens of it are in llama.cpp: more than the `length` that count where some were taken back, and fewer where
    some are lost.
    """

    held: int = 0
    is_spoilt: bool = False
    """What it holds led to values that are not finite."""
    token_ids: list[int] = field(default_factory=list)
    """What it has read; only where taking back may need it."""
    kept_states: tuple[int, bytes] | None = None
    """A length at which its states were copied, and the copy."""


class LlamaCppCache:
    """See the module. Belongs to the thread that runs the network.

    Args:
        num_slots: how many slots there will be as a rule. With prompt pairs a request has more streams than there are members; when
            slots run out, a context of more sequences takes the place of the first, up to `MAX_SLOTS`.
        max_outputs: most rows of logits of one pass.

    Raises:
        MemoryError: there is no room even for the start.
    """

    def __init__(
        self, weights: LlamaCppWeights, *, options: LlamaCppOptions, adapter: Any, num_slots: int, max_outputs: int
    ) -> None:
        self._weights = weights
        self._options = options
        self._adapter = adapter
        self._max_outputs = max_outputs
        self._slots: dict[int, LlamaCppSlot] = {}
        self.remembers = weights.has_state or weights.window > 0
        """Whether slots remember what they have read."""
        num_sequences = min(FIRST_STATES if weights.has_state else MAX_SLOTS, num_slots)
        self.context = self._make_context(_rounded(options.n_ctx), num_sequences)
        self._cell_bytes = self._state_bytes = 0

    def _make_context(self, num_cells: int, num_sequences: int) -> LlamaCppContext:
        return LlamaCppContext(
            self._weights,
            options=self._options,
            adapter=self._adapter,
            num_cells=num_cells,
            num_sequences=num_sequences,
            max_outputs=self._max_outputs,
        )

    # ---- as of `KVCache` -----------------------------------------------------------------------------------------------

    @property
    def num_bytes(self) -> int:
        """See `KVCache`. 0 before `measure`."""
        return self.context.num_cells * self._cell_bytes + self.context.num_sequences * self._state_bytes

    def num_bytes_with(self, needed_lens: Sequence[int]) -> int:
        """See `KVCache`."""
        num_cells = max(self.context.num_cells, _rounded(self._reserved() + sum(needed_lens)))
        num_sequences = max(self.context.num_sequences, len(self._slots) + len(needed_lens))
        return num_cells * self._cell_bytes + num_sequences * self._state_bytes

    def allocate(self) -> LlamaCppSlot:
        """See `KVCache`.

        Raises:
            MemoryError: all sequences are in use.
        """
        index = next((index for index in range(self.context.num_sequences) if index not in self._slots), None)
        if index is None:
            index = self.context.num_sequences
            if index >= MAX_SLOTS:
                raise MemoryError(f"all {MAX_SLOTS} sequences of {self._weights.name} in llama.cpp are in use")
            self._move(self.context.num_cells, min(2 * index, MAX_SLOTS))
        self._slots[index] = slot = LlamaCppSlot(index)
        return slot

    def release(self, slot: KVSlot, *, erase: bool = False) -> None:
        """See `KVCache`. What is not finite would stay in the cells, where kernels that do not skip them might read it."""
        own = self._own(slot)
        del self._slots[own.index]
        self.context.forget(own.index)
        if erase and own.is_spoilt:
            self._move(self.context.num_cells, self.context.num_sequences)

    def keepable_len(self, slot: KVSlot, length: int) -> int:
        """See `KVCache`. Layers with states go on from where they are, or not at all; windows as long as what they see is there."""
        own = self._own(slot)
        if length > own.held or (self._weights.has_state and not length == own.length == own.held):
            return 0
        return length if self._has_window(own, length) else 0

    def resumable_len(self, slot: KVSlot, length: int) -> int:
        """See `KVCache`. What is lost is read again by the slot itself."""
        return length

    def _has_window(self, slot: LlamaCppSlot, length: int) -> bool:
        """Whether everything is there that tokens behind the first `length` see."""
        window = self._weights.window
        return window == 0 or self.context.first_position(slot.index) <= max(0, length - window)

    def copy_prefix(self, source: KVSlot, target: KVSlot, length: int) -> None:
        """See `KVCache`. Cells are shared, not copied."""
        own, new = self._own(source), self._own(target)
        assert new.held == 0, "a prefix is copied to an empty slot"
        assert length == self.keepable_len(own, length), "a state is copied as a whole"
        if self._weights.has_state:
            self.context.copy_whole(own.index, new.index)
            new.kept_states = own.kept_states
        else:
            self.context.copy(own.index, new.index, length)
        new.token_ids = own.token_ids[:length]
        new.length = new.held = length

    def trim(self) -> None:
        """See `KVCache`."""
        num_cells = _rounded(max(self._options.n_ctx, self._reserved()))
        if num_cells < self.context.num_cells:
            self._settle()
            self._move(num_cells, self.context.num_sequences)

    # ---- for the network -----------------------------------------------------------------------------------------------

    def measure(self, slot: LlamaCppSlot, *, longer: LlamaCppSlot) -> None:
        """Learn what a token and a sequence take, from one of 1 and one of 2 tokens."""
        one, two = (self.context.sequence_bytes(own.index) for own in (slot, longer))
        self._cell_bytes = two - one
        if self._weights.has_state:
            self._state_bytes = len(self.context.states(slot.index))

    def begin(self, slot: LlamaCppSlot, num_new: int) -> int:
        """Take back what the slot holds too much, before it reads `num_new` tokens.

        Returns:
            From which position on its tokens must be read.
        """
        if slot.held > slot.length:
            self._take_back(slot)
        start = slot.held
        if self._weights.has_state and start > 0:
            kept = slot.kept_states
            age = start if kept is None else start - kept[0]
            if age >= STATE_INTERVAL or (age > 0 and num_new > 1):
                slot.kept_states = (start, self.context.states(slot.index))
        del slot.token_ids[slot.length :]
        return start

    def break_off(self, slot: LlamaCppSlot, num_new: int) -> None:
        """A pass failed that was to read `num_new` tokens; nobody knows how many of them it has read."""
        if self.remembers:
            self._forget(slot)
            slot.kept_states = None
        else:
            slot.held = slot.length + num_new

    def _take_back(self, slot: LlamaCppSlot) -> None:
        """Hold no more than counts: just that where it is possible, or less, which is to be read again."""
        if not self._weights.has_state:
            if not self._has_window(slot, slot.length):
                self._forget(slot)
                return
            taken = self.context.take_back(slot.index, slot.length)
            assert taken, "attention alone can forget any number of tokens"
            slot.held = slot.length
            return
        kept, slot.kept_states = slot.kept_states, None
        if kept is None or kept[0] > slot.length:
            self._forget(slot)
            return
        self.context.restore_states(slot.index, kept[1])
        taken = self.context.take_back(slot.index, kept[0])
        assert taken, "nothing is left of the states behind the copy"
        slot.kept_states = kept
        slot.held = kept[0]

    def _forget(self, slot: LlamaCppSlot) -> None:
        self.context.forget(slot.index)
        slot.held = 0

    def make_room(self, num_new: int) -> None:
        """After a pass of `num_new` tokens found no room: have more.

        Raises:
            MemoryError: there is none.
        """
        self._settle()
        needed = sum(slot.held for slot in self._slots.values()) + num_new
        num_cells = _rounded(max(needed, min(2 * self.context.num_cells, self._reserved())))
        if num_cells <= self.context.num_cells:
            num_cells = self.context.num_cells + _rounded(num_new)
        self._move(num_cells, self.context.num_sequences)

    def _settle(self) -> None:
        """Give back the cells of tokens that were taken back."""
        for slot in self._slots.values():
            if slot.held > slot.length:
                self._take_back(slot)

    def _reserved(self) -> int:
        return sum(max(slot.reserved_len, slot.length) for slot in self._slots.values())

    def _move(self, num_cells: int, num_sequences: int) -> None:
        """Go on in another context. The old one stays when there is no memory for two."""
        context = self._make_context(num_cells, num_sequences)
        try:
            context.take_over(self.context)
        except BaseException:
            context.close()
            raise
        self.context.close()
        self.context = context

    def _own(self, slot: KVSlot) -> LlamaCppSlot:
        own = self._slots.get(slot.index)
        assert own is slot, "a slot is used between `allocate` and `release`"
        return own

    def close(self) -> None:
        """Give everything back."""
        self._slots.clear()
        self.context.close()


def _rounded(num_cells: int) -> int:
    return -(-num_cells // CELL_STEP) * CELL_STEP
