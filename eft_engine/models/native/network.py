"""A network computed by the kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eft_engine.config import Quantization
from eft_engine.errors import UnsupportedModelError
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.native.choice import kernels_are_faster
from eft_engine.models.native.decoder import NUM_BUFFERS, Adapted, AdapterParts, PackedDecoder
from eft_engine.models.native.families import NotForKernelsError, family_of
from eft_engine.models.native.library import (
    PAGE,
    QUERIES,
    ROUNDED_GROUP_BYTES,
    RUN,
    DecoderStruct,
    OperationStruct,
    PackedMatrix,
    PassStruct,
    apart,
    kernels,
)
from eft_engine.models.native.pages import PagedKVCache
from eft_engine.models.native.quantising import GROUP, KINDS, Kind
from eft_engine.models.native.weights import KernelWeights
from eft_engine.models.network import Block

MAX_ROWS = 512
"""Tokens that are computed together; longer passes go on with the next ones, which changes no bit."""

TABLE_STEP = 2048
"""Rotary tables grow by this many positions."""


def native_network(
    model: PreTrainedModel,
    *,
    name: str,
    self_check: bool,
    keep_weights: bool,
    quantization: Quantization = "none",
    only_if_faster: bool = False,
) -> NativeLanguageModel:
    """The model computed by the kernels.

    Args:
        model, name, self_check, keep_weights: see `LanguageModel`.
        quantization: what its weights are rounded to.
        only_if_faster: leave it to torch where that is faster.

    Raises:
        NotForKernelsError: there are no kernels here, or they cannot compute it; the model is as it was.
        CorruptWeightsError: see `LanguageModel`.
    """
    family_of(model)  # before anything is compiled
    if kernels() is None:
        raise NotForKernelsError("kernels of our own could not be compiled here")
    if only_if_faster and not kernels_are_faster(model.dtype):
        raise NotForKernelsError(f"torch is faster here in {model.dtype}")
    weights = KernelWeights(model, codes=KINDS.get(quantization), keep_weights=keep_weights)
    try:
        return NativeLanguageModel(model, weights, name=name, self_check=self_check)
    except UnsupportedModelError as error:
        raise NotForKernelsError(str(error)) from error


class NativeLanguageModel(LanguageModel):
    """A causal language model of transformers whose passes the kernels compute.

    Logits are in float32. They depend on a text alone, to the bit: not on its company, on chunks, drafts or threads.

    Args:
        model: whose weights these are; it computes itself only for checks.
        weights: packed.
        name: what to call it in reports and errors.
        self_check: see `LanguageModel`.
    """

    kv_cache: PagedKVCache  # type: ignore[assignment]

    def __init__(self, model: PreTrainedModel, weights: KernelWeights, *, name: str, self_check: bool) -> None:
        self._decoder = weights.decoder
        self.rounds_rows = weights.decoder.kind in (Kind.INT8, Kind.INT4)
        self._adapter_parts: dict[str, AdapterParts] = {}
        self._programs: dict[tuple[str, ...], ctypes.Array[OperationStruct]] = {}
        self._workspace = Workspace(weights.decoder)
        super().__init__(model, name=name, self_check=self_check, held_weights=weights)

    def _new_cache(self) -> PagedKVCache:  # type: ignore[override]
        decoder = self._decoder
        return PagedKVCache(
            num_layers=decoder.num_layers,
            num_key_heads=decoder.num_key_heads,
            head_size=decoder.head_size,
            dtype=decoder.dtype,
        )

    @property
    def is_invariant(self) -> bool:
        """Always."""
        return True

    @property
    def has_state(self) -> bool:
        """Never: these are attention layers alone."""
        return False

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._decoder.nbytes

    def spans_changed(self) -> None:
        """See `LanguageModel`."""
        self._programs.clear()

    def _add_adapter(self, folder: Path, *, member: str) -> str:
        self._programs.clear()
        return super()._add_adapter(folder, member=member)

    def _adapter_added(self, adapter: str) -> None:
        self._adapter_parts[adapter] = _parts_of(self.model, adapter, self._decoder)
        ranks = [own.down.width for parts in self._adapter_parts.values() for own in parts.values()]
        self._workspace = Workspace(self._decoder, adapter_width=max(ranks, default=0))
        self._programs.clear()

    def _pass(self, blocks: Sequence[Block]) -> Tensor:
        blocks = [block.read() for block in blocks]
        logits = torch.empty(sum(block.num_logits for block in blocks), self.logits_width)
        done = 0
        for some in _in_passes(blocks):
            number = sum(block.num_logits for block in some)
            self._compute(some, logits[done : done + number])
            done += number
        return logits

    def _compute(self, blocks: Sequence[Block], logits: Tensor) -> None:
        used = tuple(sorted({block.adapter for block in blocks if block.adapter is not None}))
        if used not in self._programs:
            parts = [self._adapter_parts[adapter] for adapter in used]
            self._programs[used] = self._decoder.operations(parts, self._decoder.windows())
        pages = [self.kv_cache.make_room(block.slot, len(block.token_ids)) for block in blocks]
        addresses = [[page.address for page in own] for own in pages]
        self._workspace.compute(self._programs[used], blocks, addresses, used, logits)
        for block in blocks:
            block.slot.length += len(block.token_ids)

    def release(self) -> None:
        """As of `LanguageModel`."""
        super().release()
        self._adapter_parts.clear()
        self._programs.clear()


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


def _parts_of(model: nn.Module, adapter: str, decoder: PackedDecoder) -> AdapterParts:
    """What an adapter that PEFT has put into the model adds to each linear layer."""
    from peft.tuners.lora import LoraLayer  # takes a while to import, and most trios have no adapter

    parts: AdapterParts = {}
    for module in model.modules():
        if not isinstance(module, LoraLayer) or adapter not in module.lora_A:
            continue
        base, scaling = module.get_base_layer(), module.scaling[adapter]
        assert base in decoder.weights, f"{type(base).__name__} has an adapter and is not packed"
        inner, outer = module.lora_A[adapter], module.lora_B[adapter]
        down = PackedMatrix(Kind.F32, inner.in_features, apart([inner.out_features]))
        down.put(0, inner.weight, inner.bias)
        up: Any = PackedMatrix(Kind.F32, outer.in_features, apart([outer.out_features]))
        up.put(0, outer.weight.float() * scaling, None if outer.bias is None else outer.bias.float() * scaling)
        parts[base] = Adapted(down, up)
    return parts
