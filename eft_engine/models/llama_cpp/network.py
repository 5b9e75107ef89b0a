"""A network in llama.cpp under the engine: ragged blocks in, the logits that are wanted out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eft_engine.config import LlamaCppOptions
from eft_engine.errors import CorruptWeightsError, LoadOutOfMemoryError, UnsupportedModelError
from eft_engine.models.llama_cpp.adapter_file import check_gguf_adapter, write_gguf_adapter
from eft_engine.models.llama_cpp.cache import LlamaCppCache, LlamaCppSlot
from eft_engine.models.llama_cpp.library import threads_of
from eft_engine.models.llama_cpp.weights import LlamaCppWeights
from eft_engine.models.network import Block, Network

SELF_CHECK_TOLERANCE = 0.1
"""Largest allowed difference of logits, relative to the largest one, between reading tokens together and one by one: kernels for
several tokens and for one round quantised weights differently."""


class LlamaCppNetwork(Network):
    """Weights in llama.cpp, with or without an adapter, and a context of their own.

    An adapter belongs to a context, so the members that have one are networks of their own over the same weights.

    Args:
        weights: shared with the networks that `with_adapter` makes.
        options: see there.
        name: what to call it in reports and errors.
        num_slots: sequences that are in use at a time, as a rule; see `LlamaCppCache`.
        max_outputs: rows of logits computed at a time; more are computed in several passes.
        self_check: read, take back and read again, and compare.
        adapter: of `weights.adapter`.

    Raises:
        CorruptWeightsError: its logits are not finite.
        LoadOutOfMemoryError: there is no memory for its context.
        UnsupportedModelError: its logits change when tokens are taken back and read again.
    """

    kv_cache: LlamaCppCache

    def __init__(
        self,
        weights: LlamaCppWeights,
        *,
        options: LlamaCppOptions,
        name: str,
        num_slots: int,
        max_outputs: int,
        self_check: bool = True,
        adapter: Any = None,
    ) -> None:
        self.name = name
        self.device = torch.device("cpu")
        self.logits_width = self.vocab_size = weights.num_tokens
        self.context_len = weights.context_len
        self.num_threads, _ = threads_of(options)
        self.weight_bytes = weights.file.tensor_bytes
        self._weights = weights
        self._options = options
        self._limits = {"num_slots": num_slots, "max_outputs": max_outputs}
        self._self_check = self_check
        self._with_adapter: dict[Path, LlamaCppNetwork] = {}
        weights.use()
        try:
            self.kv_cache = LlamaCppCache(weights, options=options, adapter=adapter, **self._limits)
        except MemoryError as error:
            weights.leave()
            raise LoadOutOfMemoryError(
                f"{name}: {error}; lower MemberConfig(llama_cpp=LlamaCppOptions(n_ctx=...)) or max_num_seqs",
                needed_bytes=None,
                available_bytes=None,
                device="cpu",
                member=name,
                source=str(weights.file.paths[0]),
            ) from error
        try:
            self._check()
        except BaseException:
            self.release()
            raise

    @property
    def fingerprint(self) -> str:
        """See `Network`."""
        file, options = self._weights.file, self._options
        adapted = f"{len(self._with_adapter)} adapters" if self._with_adapter else ""
        return (
            f"llama.cpp {file.architecture} {file.type_name} {file.tensor_bytes} {options.model_dump_json()} {adapted}"
        )

    @property
    def has_state(self) -> bool:
        """See `Network`."""
        return self._weights.has_state

    def with_adapter(self, adapter: Path, *, member: str) -> tuple[LlamaCppNetwork, None]:
        """See `Network`. A PEFT folder is written as llama.cpp's own format first."""
        if adapter not in self._with_adapter:
            with tempfile.TemporaryDirectory(prefix="eft-") as scratch:
                if adapter.is_dir():
                    path = write_gguf_adapter(
                        adapter, Path(scratch) / "adapter.gguf", model=self._weights.file, member=member
                    )
                else:
                    check_gguf_adapter(adapter, model=self._weights.file, member=member)
                    path = adapter
                loaded = self._weights.adapter(path, member=member)
            self._with_adapter[adapter] = LlamaCppNetwork(
                self._weights,
                options=self._options,
                name=member,
                self_check=self._self_check,
                adapter=loaded,
                **self._limits,
            )
        return self._with_adapter[adapter], None

    def use_threads(self, number: int) -> None:
        """See `Network`. Prompts keep theirs."""
        self.kv_cache.context.use_threads(number)

    def forward(self, blocks: Sequence[Block]) -> Tensor:
        """See `Network`; float32.

        Raises:
            MemoryError: there is no room for the tokens.
            RuntimeError: llama.cpp failed.
        """
        assert blocks, "a forward pass has at least one block"
        token_ids: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        wanted: list[bool] = []
        slots: list[LlamaCppSlot] = []
        for block in blocks:
            slot, new_ids = block.slot, list(block.read().token_ids)
            assert isinstance(slot, LlamaCppSlot), "a block's slot is of its network"
            start = self.kv_cache.begin(slot, len(new_ids))
            fed = slot.token_ids[start:] + new_ids
            if self.kv_cache.remembers:
                slot.token_ids += new_ids
            token_ids += fed
            positions += range(start, start + len(fed))
            sequences += [slot.index] * len(fed)
            wanted += [index >= len(fed) - block.num_logits for index in range(len(fed))]
            slots.append(slot)
        try:
            logits = self._decode(token_ids, positions, sequences, wanted)
        except BaseException:
            for block, slot in zip(blocks, slots, strict=True):
                self.kv_cache.break_off(slot, len(block.token_ids))
            raise
        for block, slot in zip(blocks, slots, strict=True):
            slot.length += len(block.token_ids)
            slot.held = slot.length
        self._note_spoilt(blocks, slots, logits)
        return logits

    def _decode(self, token_ids: list[int], positions: list[int], sequences: list[int], wanted: list[bool]) -> Tensor:
        pieces = []
        max_tokens = self.kv_cache.context.max_tokens
        for start, stop in _pieces(wanted, max_tokens=max_tokens, max_outputs=self._limits["max_outputs"]):
            part = slice(start, stop)
            arguments = (token_ids[part], positions[part], sequences[part], wanted[part])
            rows = self.kv_cache.context.decode(*arguments)
            if rows is None:
                self.kv_cache.make_room(len(token_ids))
                rows = self.kv_cache.context.decode(*arguments)
            if rows is None:
                raise MemoryError(f"{self.name}: llama.cpp finds no room for {stop - start} tokens")
            pieces.append(rows)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _note_spoilt(self, blocks: Sequence[Block], slots: Sequence[LlamaCppSlot], logits: Tensor) -> None:
        if not len(logits) or logits.amax(dim=-1).isfinite().all():
            return
        rows_of = torch.split(logits, [block.num_logits for block in blocks])
        for slot, rows in zip(slots, rows_of, strict=True):
            slot.is_spoilt |= not bool(rows.amax(dim=-1).isfinite().all())

    def _check(self) -> None:
        """Read a short text whole, take most of it back, read it again one by one; and see what a token takes."""
        ids = [(7 * index + 3) % min(self.logits_width, 1000) for index in range(6)]
        slot, other = self.kv_cache.allocate(), self.kv_cache.allocate()
        try:
            together = self.forward([Block(slot, ids, 1)])[0]
            slot.truncate(1)
            one_by_one = [self.forward([Block(slot, [token_id], 1)])[0] for token_id in ids[1:]][-1]
            slot.truncate(1)
            self.forward([Block(slot, ids[1:2], 0), Block(other, ids[:1], 0)])
            self.kv_cache.measure(other, longer=slot)
        finally:
            for own in (slot, other):
                self.kv_cache.release(own)
        if not self._self_check:
            return
        source = str(self._weights.file.paths[0])
        if not (together.isfinite().all() and one_by_one.isfinite().all()):
            raise CorruptWeightsError(
                f"{self.name}: the logits of {source} are not finite; the file is damaged, or its parts are joined in the "
                "wrong order",
                member=self.name,
                source=source,
            )
        difference = ((together - one_by_one).abs().max() / together.abs().max()).item()
        if difference > SELF_CHECK_TOLERANCE:
            raise UnsupportedModelError(
                f"{self.name}: the logits of {source} ({self._weights.file.architecture}) change by {difference:.2g} of their "
                f"size (allowed {SELF_CHECK_TOLERANCE:.2g}) when llama.cpp reads tokens one by one after taking some back, so "
                "it cannot be composed there; try MemberConfig(runtime='torch')",
                member=self.name,
                source=source,
            )

    def release(self) -> None:
        """See `Network`. The weights go with the last network that computes with them."""
        self.kv_cache.close()
        self._weights.leave()


def _pieces(wanted: Sequence[bool], *, max_tokens: int, max_outputs: int) -> list[tuple[int, int]]:
    """Ranges of tokens for one call each: at most `max_tokens`, of which at most `max_outputs` are wanted.

    >>> _pieces([True, False, True, True], max_tokens=3, max_outputs=2)
    [(0, 3), (3, 4)]
    """
    pieces, start, num_outputs = [], 0, 0
    for index, is_wanted in enumerate(wanted):
        if index - start == max_tokens or num_outputs + is_wanted > max_outputs:
            pieces.append((start, index))
            start, num_outputs = index, 0
        num_outputs += is_wanted
    return [*pieces, (start, len(wanted))]
