"""Passes of a packed decoder over the pages of a cache."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from eft_engine.models.native.decoder import NUM_BUFFERS, AdapterParts, PackedDecoder
from eft_engine.models.native.library import (
    PAGE,
    QUERIES,
    ROUNDED_GROUP_BYTES,
    RUN,
    DecoderStruct,
    OperationStruct,
    PassStruct,
    kernels,
)
from eft_engine.models.native.pages import PagedKVCache
from eft_engine.models.native.quantising import GROUP, Kind
from eft_engine.models.network import Block

MAX_ROWS = 512
"""Tokens that are computed together; longer passes go on with the next ones, which changes no bit."""

TABLE_STEP = 2048
"""Rotary tables grow by this many positions."""


class Passes:
    """Reads blocks with one decoder's weights. One thread computes at a time.

    Args:
        decoder: the weights.
        adapter_kind: what the numbers of adapters are held as.
    """

    def __init__(self, decoder: PackedDecoder, *, adapter_kind: Kind) -> None:
        self.decoder = decoder
        self.adapter_kind = adapter_kind
        self._adapters: dict[str, AdapterParts] = {}
        self._programs: dict[tuple[str, ...], ctypes.Array[OperationStruct]] = {}
        self._workspace: Workspace | None = None

    def add_adapter(self, name: str, parts: AdapterParts) -> None:
        """Let blocks name it."""
        self._adapters[name] = parts
        self.forget()

    def remove_adapters(self) -> None:
        """There are none any more."""
        self._adapters.clear()
        self.forget()

    def forget(self) -> None:
        """The model is about to change, or layers see other positions."""
        self._programs.clear()
        self._workspace = None

    def read(self, blocks: Sequence[Block], cache: PagedKVCache, *, logits_width: int) -> Tensor:
        """Feed every block to its slot and advance the slots' lengths: logits `[sum of num_logits, logits_width]` in float32."""
        blocks = [block.read() for block in blocks]
        logits = torch.empty(sum(block.num_logits for block in blocks), logits_width)
        done = 0
        for some in _in_passes(blocks):
            number = sum(block.num_logits for block in some)
            self._compute(some, cache, logits[done : done + number])
            done += number
        return logits

    def _compute(self, blocks: Sequence[Block], cache: PagedKVCache, logits: Tensor) -> None:
        used = tuple(sorted({block.adapter for block in blocks if block.adapter is not None}))
        if used not in self._programs:
            parts = [self._adapters[adapter] for adapter in used]
            self._programs[used] = self.decoder.operations(parts, self.decoder.windows())
        if self._workspace is None:
            ranks = [own.down.width for parts in self._adapters.values() for own in parts.values()]
            self._workspace = Workspace(self.decoder, adapter_width=max(ranks, default=0))
        pages = [cache.make_room(block.slot, len(block.token_ids)) for block in blocks]
        addresses = [[page.address for page in own] for own in pages]
        self._workspace.compute(self._programs[used], blocks, addresses, used, logits)
        for block in blocks:
            block.slot.length += len(block.token_ids)


def _in_passes(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """The blocks in groups of at most `MAX_ROWS` tokens, cut where they must be; logits stay in order."""
    some: list[Block] = []
    room = MAX_ROWS
    for block in blocks:
        start, count = 0, len(block.token_ids)
        while count - start > room:
            if room:
                behind = count - start - room  # tokens of the block that are left for later
                some.append(
                    replace(
                        block,
                        token_ids=block.token_ids[start : start + room],
                        num_logits=max(0, block.num_logits - behind),
                    )
                )
                block = replace(block, num_logits=min(block.num_logits, behind))
                start += room
            yield some
            some, room = [], MAX_ROWS
        some.append(replace(block, token_ids=block.token_ids[start:]))
        room -= count - start
    if some:
        yield some


class Workspace:
    """Buffers and tables of one network's passes, which one thread computes at a time."""

    def __init__(self, decoder: PackedDecoder, *, adapter_width: int = 0) -> None:
        self._decoder = decoder
        self._widths = decoder.buffer_widths(adapter_width)
        self._num_rows = 0
        self._buffers: list[Tensor] = []
        self._addresses = (ctypes.c_void_p * NUM_BUFFERS)()
        self._sizes = (ctypes.c_int64 * NUM_BUFFERS)(*self._widths)
        self._rounded = torch.empty(0, dtype=torch.uint8)
        self._rounded_width = 0
        self._tables: list[Tensor] = []
        self._table_addresses = (ctypes.c_void_p * len(decoder.layer_types))()
        self._scores = torch.empty(0)
        self._struct = DecoderStruct(
            num_key_heads=decoder.num_key_heads,
            head_size=decoder.head_size,
            num_layers=decoder.num_layers,
            cache_kind=int(Kind.F32 if decoder.dtype == torch.float32 else Kind.BF16),
            embedding_kind=int(Kind.F32 if decoder.dtype == torch.float32 else Kind.BF16),
            buffers=ctypes.addressof(self._addresses),
            widths=ctypes.addressof(self._sizes),
        )

    def _fit(self, num_rows: int, num_positions: int, num_threads: int) -> None:
        if num_rows > self._num_rows:
            self._num_rows = min(MAX_ROWS, 1 << (num_rows - 1).bit_length())
            # Zeros: numbers that pad a row are read.
            self._buffers = [torch.zeros(self._num_rows, width) for width in self._widths]
            for index, buffer in enumerate(self._buffers):
                self._addresses[index] = buffer.data_ptr()
            if self._decoder.kind in (Kind.INT8, Kind.INT4):
                self._rounded_width = max(self._widths) // GROUP + 1
                size = self._num_rows * self._rounded_width * ROUNDED_GROUP_BYTES
                self._rounded = torch.empty(size, dtype=torch.uint8)
        if not self._tables or num_positions > len(self._tables[0]):
            self._grow_tables(-(-num_positions // TABLE_STEP) * TABLE_STEP)
        width = -(-num_positions // PAGE) * PAGE
        if self._scores.ndim < 3 or self._scores.shape[0] < num_threads or self._scores.shape[2] < width:
            self._scores = torch.empty(num_threads, QUERIES, max(256, 1 << (width - 1).bit_length()))

    def _grow_tables(self, num_positions: int) -> None:
        kinds = self._decoder.layer_types
        held: list[Tensor | None] = [*self._tables] or [None] * len(kinds)
        self._tables = []
        for index, (own, kind) in enumerate(zip(held, kinds, strict=True)):
            start = 0 if own is None else len(own)
            more = self._decoder.rotary_table(kind, start, num_positions)
            self._tables.append(more.contiguous() if own is None else torch.cat([own, more]))
            self._table_addresses[index] = self._tables[index].data_ptr()

    def compute(
        self,
        program: ctypes.Array[OperationStruct],
        blocks: Sequence[Block],
        pages: Sequence[Sequence[int]],
        adapters: Sequence[str],
        logits: Tensor,
    ) -> None:
        """Read the blocks and write logits `[sum of num_logits, width]`.

        Args:
            program: its operations.
            blocks: no more than `MAX_ROWS` tokens together.
            pages: addresses of each block's pages, with room for its tokens.
            adapters: in the order of the program's.
            logits: to be written.

        Raises:
            MemoryError: there is none for the pass.
        """
        counts = [len(block.token_ids) for block in blocks]
        num_rows, num_threads = sum(counts), torch.get_num_threads()
        self._fit(
            num_rows, max(block.slot.length + count for block, count in zip(blocks, counts, strict=True)), num_threads
        )
        starts = np.cumsum([0, *counts])
        tokens = np.fromiter((token_id for block in blocks for token_id in block.token_ids), np.int32, num_rows)
        positions = np.concatenate(
            [
                np.arange(own.slot.length, own.slot.length + count, dtype=np.int32)
                for own, count in zip(blocks, counts, strict=True)
            ]
        )
        text_of = np.repeat(np.arange(len(blocks), dtype=np.int32), counts)
        wanted = np.concatenate(
            [np.arange(end - own.num_logits, end, dtype=np.int32) for own, end in zip(blocks, starts[1:], strict=True)]
        )
        run_starts = np.array(
            [
                *(row for start, end in pairwise(starts) for row in range(start, end, RUN)),
                num_rows,
            ],
            np.int32,
        )
        addresses = np.array([address for own in pages for address in own], np.int64)
        first_page = np.cumsum([0, *map(len, pages)])
        rows_of = [
            np.flatnonzero(np.repeat([own.adapter == adapter for own in blocks], counts)).astype(np.int32)
            for adapter in adapters
        ]
        adapter_rows = np.concatenate([np.zeros(0, np.int32), *rows_of])
        adapter_starts = np.cumsum([0, *map(len, rows_of)])
        decoder = self._struct
        decoder.operations = ctypes.addressof(program)
        decoder.num_operations = len(program)
        struct = PassStruct(
            num_rows=num_rows,
            num_wanted=len(wanted),
            num_runs=len(run_starts) - 1,
            tokens=tokens.ctypes.data,
            positions=positions.ctypes.data,
            text_of=text_of.ctypes.data,
            wanted=wanted.ctypes.data,
            run_starts=run_starts.ctypes.data,
            pages=addresses.ctypes.data,
            first_page=first_page.ctypes.data,
            adapter_rows=adapter_rows.ctypes.data,
            adapter_starts=adapter_starts.ctypes.data,
            tables=ctypes.addressof(self._table_addresses),
            rounded=self._rounded.data_ptr(),
            rounded_width=self._rounded_width,
            scores=self._scores.data_ptr(),
            scores_width=self._scores.shape[2],
            logits=logits.data_ptr(),
            logits_width=logits.shape[1],
            num_threads=num_threads,
        )
        library = kernels()
        assert library is not None, "nothing is packed without kernels"
        if library.eft_pass(ctypes.byref(decoder), ctypes.byref(struct)):
            raise MemoryError("no memory for a pass")
