"""Keys and values in pages of 16 positions, so that memory goes by the tokens held.

A slot has a list of pages. Slots that begin with the same text share its pages; a page is copied when one of its slots is about to
write to it. Pages come from chunks of 16 of them, which are given back as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eft_engine.models.native.library import PAGE
from eft_engine.models.network import KVSlot

CHUNK = 16
"""Pages that are asked of the system together."""


@dataclass(eq=False)
class Page:
    """Keys and values of 16 positions in all layers; `uses` counts the slots that hold it."""

    chunk: Tensor
    numbers: Tensor
    uses: int = 1

    @property
    def address(self) -> int:
        """Where its numbers begin."""
        return self.numbers.data_ptr()


@dataclass(eq=False)
class PagedSlot(KVSlot):
    """A slot and its pages, those of its valid positions and of some behind them."""

    pages: list[Page] = field(default_factory=list)


class PagedKVCache:
    """The slots of one network and the pages behind them.

    Args:
        num_layers, num_key_heads, head_size: of the network.
        dtype: of keys and values.
    """

    def __init__(self, *, num_layers: int, num_key_heads: int, head_size: int, dtype: torch.dtype) -> None:
        self._numbers_of_page = num_layers * num_key_heads * 2 * head_size * PAGE
        self._dtype = dtype
        self.page_bytes = self._numbers_of_page * dtype.itemsize
        self._slots: set[PagedSlot] = set()
        self._free: list[Page] = []
        self._num_chunks = 0
        self._next_index = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages, free ones included."""
        return self._num_chunks * CHUNK * self.page_bytes

    def num_bytes_with(self, needed_lens: Sequence[int]) -> int:
        """Bytes once slots have the length that they, or more slots, may need."""
        held = {id(page) for slot in self._slots for page in slot.pages}
        missing = sum(max(0, _num_pages(slot.reserved_len) - len(slot.pages)) for slot in self._slots)
        total = len(held) + missing + sum(map(_num_pages, needed_lens))
        return max(self._num_chunks, -(-total // CHUNK)) * CHUNK * self.page_bytes

    def allocate(self) -> PagedSlot:
        """A free slot, empty."""
        slot = PagedSlot(self._next_index)
        self._next_index += 1
        self._slots.add(slot)
        return slot

    @torch.inference_mode()  # pages are made inside passes
    def release(self, slot: KVSlot, *, erase: bool = False) -> None:
        """Give the slot back. `erase`: its numbers, which may be NaN, are overwritten."""
        own = _paged(slot)
        assert own in self._slots, "a slot is released once"
        self._slots.remove(own)
        self._let_go(own.pages, erase=erase)
        own.pages = []

    def _let_go(self, pages: Iterable[Page], *, erase: bool = False) -> None:
        for page in pages:
            page.uses -= 1
            if page.uses == 0:
                if erase:
                    page.numbers.zero_()
                self._free.append(page)

    def keepable_len(self, slot: KVSlot, length: int) -> int:
        """All of them: positions are kept apart."""
        return length

    def resumable_len(self, slot: KVSlot, length: int) -> int:
        """All of them: positions are kept apart."""
        return length

    def copy_prefix(self, source: KVSlot, target: KVSlot, length: int) -> None:
        """Let `target`, which is empty, begin with the first `length` positions of `source`: it shares their pages."""
        assert length <= source.length, f"cannot copy {length} of {source.length} positions"
        assert target.length == 0, "a prefix is copied to an empty slot"
        own = _paged(target)
        self._let_go(own.pages)
        own.pages = _paged(source).pages[: _num_pages(length)]
        for page in own.pages:
            page.uses += 1
        own.length = length

    @torch.inference_mode()
    def make_room(self, slot: KVSlot, num_tokens: int) -> list[Page]:
        """The slot's pages once they have room for so many more tokens; those that will be written to are its own."""
        own = _paged(slot)
        first = own.length // PAGE
        for index in range(first, min(len(own.pages), _num_pages(own.length + num_tokens))):
            page = own.pages[index]
            if page.uses > 1:
                copy = self._new_page()
                copy.numbers.copy_(page.numbers)
                page.uses -= 1
                own.pages[index] = copy
        while len(own.pages) * PAGE < own.length + num_tokens:
            own.pages.append(self._new_page())
        return own.pages

    def _new_page(self) -> Page:
        if not self._free:
            # Zeros, not empty memory: positions that are not seen get weight 0, and 0 * NaN would still be NaN.
            chunk = torch.zeros(CHUNK, self._numbers_of_page, dtype=self._dtype)
            self._free = [Page(chunk, chunk[index], uses=0) for index in reversed(range(CHUNK))]
            self._num_chunks += 1
        page = self._free.pop()
        page.uses = 1
        return page

    def trim(self) -> None:
        """Give back pages behind the slots' lengths, and chunks of which no page is in use."""
        for slot in self._slots:
            kept = _num_pages(slot.length)
            self._let_go(slot.pages[kept:])
            del slot.pages[kept:]
        free: dict[int, list[Page]] = {}
        for page in self._free:
            free.setdefault(id(page.chunk), []).append(page)
        self._free = [page for pages in free.values() if len(pages) < CHUNK for page in pages]
        self._num_chunks -= sum(len(pages) == CHUNK for pages in free.values())


def _num_pages(length: int) -> int:
    return -(-length // PAGE)


def _paged(slot: KVSlot) -> PagedSlot:
    assert isinstance(slot, PagedSlot), "a slot is of the cache that it was allocated from"
    return slot
