"""The cache of one network: a slot per stream, with per-row lengths.

Each attention layer holds one buffer `[slots, kv_heads, max_len, head_dim]` for keys and one for values. A *slot* belongs to one
stream of tokens; its `length` says how many of its positions are valid, and for keys and values that integer is the whole
state: taking tokens back is `truncate(length)`, without a copy. Rows of one forward pass have different lengths. They are
written at their own positions and read through a mask; nothing is padded on the left, so positions never shift. Layers that
keep a state instead have it in `states`.

On a CPU the buffers are `LazyZeros`: a slot takes memory for the positions that it has reached, not for `max_len` of them, and
gives it back when it is released. On a GPU they are whole.

A forward pass works on *adjacent* slots, so that it reads the buffers through a view instead of gathering rows: `arrange` moves
slots together when the set of rows changes, which happens when requests come and go and not at every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from eft_engine.errors import UnsupportedModelError
from eft_engine.models.layout import BatchLayout, computing
from eft_engine.models.lazy_memory import LazyZeros, rounded_to_pages
from eft_engine.models.network import KVSlot
from eft_engine.models.slot_states import SlotStates
from eft_engine.models.state_rows import StateSlot

LENGTH_STEP = 256
"""Buffers grow to a multiple of this many positions (and at least by half), so that growing stays rare."""


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's buffers, made when the layer first sees keys (then its device, dtype and head sizes are known)."""

    keys: Tensor | None
    values: Tensor | None

    def __init__(self, cache: SlotKVCache) -> None:
        super().__init__()
        self._cache = cache
        self.memory: tuple[LazyZeros, ...] = ()
        """What the buffers lie in."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers; `*_states` are `[rows, kv_heads, columns, head_dim]` and give dtype, device and head sizes."""
        # Zeros, not empty memory: masked positions get weight 0, and 0 * NaN would still be NaN.
        num_slots, max_len = self._cache.num_slots, self._cache.max_len
        self.memory = tuple(
            LazyZeros((num_slots, states.shape[1], max_len, states.shape[3]), like=states)
            for states in (key_states, value_states)
        )
        self.keys, self.values = (own.tensor for own in self.memory)
        self.is_initialized = True
        self._cache.buffers_version += 1

    def fit(self) -> None:
        """Bring existing buffers to the size that the cache needs now, keeping what its slots hold."""
        if self.keys is None or self.values is None:
            return
        if self.keys.shape[::2] != (self._cache.num_slots, self._cache.max_len):
            held = (self.keys, self.values)
            self.lazy_initialization(*held)  # where memory runs out, what is held stays
            for new, old in zip((self.keys, self.values), held, strict=True):
                for place, length in enumerate(self._cache.lengths_at(min(len(new), len(old)))):
                    new[place, :, :length] = old[place, :, :length]

    def erase(self, place: int, reached: int) -> None:
        """Overwrite a slot that has reached so many positions."""
        for own in self.memory:
            if place < len(own.tensor):
                own.tensor[place, :, : reached if own.is_lazy else None].zero_()

    def give_back(self, place: int, first: int, stop: int) -> None:
        """Let go of the memory of these positions of a slot, where it is taken as it is written."""
        for own in self.memory:
            if own.is_lazy and place < len(own.tensor):
                for head in own.tensor[place]:
                    own.give_back(head[first:stop])

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
        return self.keys[layout.rows, :, : layout.window], self.values[layout.rows, :, : layout.window]

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
    """The cache of one network: one `SlotLayer` per attention layer, the states of other layers, and the slots."""

    def __init__(self) -> None:
        self.num_slots = 0
        self.max_len = 0
        self.layout: BatchLayout | None = None
        self.states = SlotStates()
        self.buffers_version = 0
        """Grows when buffers are made anew, at other addresses."""
        self._slots: list[StateSlot | None] = []
        self._reached: Counter[int] = Counter()
        """By place: positions that take memory, where it is taken as it is written."""
        super().__init__(layers=[])

    # ---- as transformers' models ask ---------------------------------------------------------------------------------

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `SlotLayer.update`."""
        while len(self.layers) <= layer_idx:
            self.layers.append(SlotLayer(self))
        keys, values = self.layers[layer_idx].update(key_states, value_states)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Of the longest row, so that with the columns of the pass it is the number of positions that the pass sees. No row's
        position may be told from it: these are passed explicitly.
        """
        return self.layout.window - self.layout.num_columns if self.layout else 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Positions that the pass sees, from 0 on; of all layers alike."""
        return (self.layout.window if self.layout else query_length), 0

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """Nothing to be changed in place: all go through `update_conv_state`, which keeps rows apart."""
        return

    def update_conv_state(
        self,
        conv_states: Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **_: Any,
    ) -> Tensor:
        """See `SlotStates.extend_convolution`."""
        return self.states.extend_convolution(
            (layer_idx, state_idx), conv_states, conv_kernel_size or conv_states.shape[-1]
        )

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """Nothing that a module would have to carry on: the scan that follows finds its states itself (see `scans`)."""
        self.states.enter_recurrence((layer_idx, state_idx))

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Tensor:
        """The scan has kept the states already.

        Raises:
            UnsupportedModelError: they came from something else.
        """
        if not self.states.was_scanned:
            raise UnsupportedModelError(
                f"layer {layer_idx} keeps a state that is made by no recurrence that the engine knows, so that tokens could not be "
                "taken back from it"
            )
        return recurrent_states

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """See `get_conv_state`."""
        return False

    def is_recording_past(self, layer_idx: int) -> bool:
        """Convolutions get their inputs whole."""
        return True

    # ---- for the network ---------------------------------------------------------------------------------------------

    @contextmanager
    def computing(
        self,
        layout: BatchLayout,
        slots: Sequence[StateSlot] = (),
        settled: Sequence[int] = (),
        provisional: Sequence[int] = (),
    ) -> Iterator[None]:
        """Inside the block a pass is computed. The slots must have their new lengths when it ends; see `SlotStates.begin`."""
        self.layout = layout
        self.states.num_slots = self.num_slots
        for slot in slots:
            self._reached[slot.index] = max(self._reached[slot.index], slot.length + layout.num_columns)
        if slots:
            self.states.begin(slots, settled, provisional)
        try:
            with computing(layout, self.states):
                yield
            if slots:
                self.states.end(slots)
            for slot in slots:  # short rows were padded
                self._give_back(slot.index, max(slot.length, slot.reserved_len))
        except BaseException:
            self.states.break_off(slots)
            raise
        finally:
            self.layout = None

    @property
    def num_bytes(self) -> int:
        """Bytes that all buffers take, and states that are kept."""
        kept = {
            id(copy): copy.nbytes
            for slot in self._slots
            if slot
            for held in slot.kept.values()
            for copy in held.values()
        }
        held = self._bytes_of(self._reached[slot.index] for slot in self._slots if slot)
        return held + self.states.num_bytes + sum(kept.values())

    def num_bytes_with(self, needed_lens: Sequence[int]) -> int:
        """Bytes of all buffers once more slots are in use, and slots have the length that they or the new ones may need.

        0 before the first forward pass, which makes the buffers.
        """
        in_use = [slot for slot in self._slots if slot is not None]
        num_slots = max(1, self.num_slots)
        while num_slots < len(in_use) + len(needed_lens):
            num_slots *= 2
        lengths = [*needed_lens, *(max(slot.reserved_len, self._reached[slot.index]) for slot in in_use)]
        max_len = max(self.max_len, _rounded_len(max(lengths, default=0)))
        return self._bytes_of(lengths, num_slots=num_slots, max_len=max_len) + num_slots * self.states.bytes_per_slot

    def _bytes_of(self, lengths: Iterable[int], *, num_slots: int | None = None, max_len: int | None = None) -> int:
        """Bytes of all buffers when slots have reached these lengths, and there are so many slots of so many positions (those that
        there are now), which count where memory is not taken as it is written.
        """
        lengths = list(lengths)
        kinds = Counter(
            (own.is_lazy, *own.tensor.shape, own.tensor.element_size()) for layer in self.layers for own in layer.memory
        )
        return sum(
            number
            * num_heads
            * (
                sum(rounded_to_pages(length * head_dim * item_size) for length in lengths)
                if is_lazy
                else (num_slots or slots) * (max_len or positions) * head_dim * item_size
            )
            for (is_lazy, slots, num_heads, positions, head_dim, item_size), number in kinds.items()
        )

    def _give_back(self, place: int, length: int) -> None:
        """Let go of the memory behind so many positions of a place."""
        reached = self._reached[place]
        if reached > length:
            for layer in self.layers:
                layer.give_back(place, length, reached)
            self._reached[place] = length

    def allocate(self) -> StateSlot:
        """A free slot, empty."""
        if None not in self._slots:
            self._slots.append(None)
            # Doubling keeps the number of copies logarithmic in the number of slots.
            if len(self._slots) > self.num_slots:
                self.num_slots = max(1, 2 * self.num_slots)
        # What its place holds is another's; with a read length that is no length it resumes from nothing.
        slot = StateSlot(self._slots.index(None), settled_len=-1, read_len=-1)
        self._slots[slot.index] = slot
        return slot

    @torch.inference_mode()
    def release(self, slot: KVSlot, *, erase: bool = False) -> None:
        """Give the slot back. `erase` overwrites it: needed when it may hold NaN, which masking alone does not silence."""
        assert self._slots[slot.index] is slot, "a slot is released once"
        self._slots[slot.index] = None
        if erase:
            for layer in self.layers:
                layer.erase(slot.index, self._reached[slot.index])
            self.states.erase(slot.index)
        self._give_back(slot.index, 0)

    @torch.inference_mode()
    def trim(self) -> None:
        """Give back the memory of free slots behind the last one in use, and of positions that no slot has reached."""
        while self._slots and self._slots[-1] is None:
            self._slots.pop()
        self.num_slots = len(self._slots)
        self.max_len = 0
        self.reserve(max((slot.length for slot in self._slots if slot is not None), default=0))
        self.fit()
        for slot in self._slots:
            if slot is not None:
                self._give_back(slot.index, slot.length)

    def keepable_len(self, slot: KVSlot, length: int) -> int:
        """All of them where positions are kept apart; else as many as a state was kept of."""
        return self.states.keepable_len(self._own(slot), length) if self.states else length

    def resumable_len(self, slot: KVSlot, length: int) -> int:
        """All of them where positions are kept apart; else up to where a state stands."""
        return self.states.resumable_len(self._own(slot), length) if self.states else length

    @torch.inference_mode()
    def copy_prefix(self, source: KVSlot, target: KVSlot, length: int) -> None:
        """Let `target`, which is empty, begin with the first `length` positions of `source`."""
        assert length <= source.length, f"cannot copy {length} of {source.length} positions"
        assert target.length == 0, "a prefix is copied to an empty slot"
        for buffer in self._buffers():
            buffer[target.index, :, :length] = buffer[source.index, :, :length]
        self._reached[target.index] = max(self._reached[target.index], length)
        if self.states:
            self.states.copy(self._own(source), self._own(target), length)
        self._own(target).token_ids, self._own(target).is_long = (
            self._own(source).token_ids[:length],
            self._own(source).is_long,
        )
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

    def arrange(self, slots: Sequence[KVSlot], *, from_first: bool = False) -> list[StateSlot]:
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
        return sorted(map(self._own, slots), key=lambda slot: slot.index)

    @torch.inference_mode()
    def _swap(self, a: int, b: int) -> None:
        first, second = self._slots[a], self._slots[b]
        of_first, of_second = (0 if slot is None else slot.length for slot in (first, second))
        for buffer in self._buffers():
            held = buffer[a, :, :of_first].clone()
            buffer[a, :, :of_second] = buffer[b, :, :of_second]
            buffer[b, :, :of_first] = held
        for place, length in ((a, of_second), (b, of_first)):
            self._reached[place] = max(self._reached[place], length)
            self._give_back(place, length)
        self.states.swap(a, b)
        self._slots[a], self._slots[b] = second, first
        for index in (a, b):
            slot = self._slots[index]
            if slot is not None:
                slot.index = index

    def fit(self) -> None:
        """Bring the buffers to the size that is needed now."""
        for layer in self.layers:
            layer.fit()
        self.states.fit(self.num_slots)

    def _held(self) -> list[Tensor]:
        """Buffers of keys and values, those that exist."""
        return [buffer for layer in self.layers if layer.is_initialized for buffer in (layer.keys, layer.values)]

    def _buffers(self) -> list[Tensor]:
        """As `_held`, large enough for every slot: one that was allocated since the last write is part of them too."""
        self.fit()
        return self._held()

    def _own(self, slot: KVSlot) -> StateSlot:
        assert isinstance(slot, StateSlot), "a slot is of the cache that it was allocated from"
        return slot


def _rounded_len(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP
