"""One context of llama.cpp: weights, perhaps an adapter, and memory for a fixed number of tokens of a fixed number of sequences."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eft_engine.config import CacheType, LlamaCppOptions
from eft_engine.models.llama_cpp.library import library, reason_of, threads_of, watch
from eft_engine.models.llama_cpp.weights import LlamaCppWeights, set_adapter

MAX_TOKENS = 2048
"""Most tokens of one call of `decode`, in any context."""

GGML_TYPES: dict[CacheType, int] = {
    "f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2,
}  # fmt: skip
"""Numbers of ggml's types."""

FLASH_ATTENTION = {None: -1, False: 0, True: 1}
NO_ROOM, OUT_OF_MEMORY = 1, -2
"""What `llama_decode` returns; 0 is success, other numbers are failures."""

ONLY_STATES = 1
"""`LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY`: of a sequence, what cannot be taken back token by token."""


class LlamaCppContext:
    """Reads tokens into sequences 0, 1, ... and gives logits.

    Args:
        weights: what it computes with.
        options: threads, types of keys and values.
        adapter: of `weights.adapter`, or None.
        num_cells: tokens that all sequences together have room for.
        num_sequences: how many sequences there may be.
        max_outputs: most rows of logits of one call of `decode`.

    Raises:
        MemoryError: there is no room for it.
    """

    def __init__(
        self,
        weights: LlamaCppWeights,
        *,
        options: LlamaCppOptions,
        adapter: Any,
        num_cells: int,
        num_sequences: int,
        max_outputs: int,
    ) -> None:
        api = library()
        params = api.llama_context_default_params()
        params.n_ctx = num_cells
        params.n_batch = MAX_TOKENS
        params.n_ubatch = options.n_ubatch
        params.n_seq_max = num_sequences
        # llama.cpp counts on a row for each sequence, and asserts it.
        params.n_outputs_max = max(max_outputs, num_sequences)
        params.n_threads, self._num_threads_batch = threads_of(options)
        params.n_threads_batch = self._num_threads_batch
        params.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
        params.type_k, params.type_v = GGML_TYPES[options.cache_type_k], GGML_TYPES[options.cache_type_v]
        params.swa_full = True  # tokens before the window are needed when those behind it are taken back
        params.kv_unified = True  # sequences share cells, so that a beginning is copied for nothing
        params.no_perf = True
        with watch() as lines:
            self._context = api.llama_init_from_model(weights.model, params)
        if not self._context:
            raise MemoryError(f"llama.cpp makes no context for {num_cells} tokens: {reason_of(lines)}")
        if adapter is not None:
            set_adapter(self._context, adapter)
        self.num_cells: int = api.llama_n_ctx(self._context)
        self.max_tokens: int = api.llama_n_batch(self._context)
        """Most tokens of one call of `decode`; llama.cpp allows no more than there are cells."""
        self.num_sequences = num_sequences
        self._memory = api.llama_get_memory(self._context)
        self._width = weights.num_tokens
        self._decode, self._get_logits = api.llama_decode, api.llama_get_logits
        self._make_batch()

    def _make_batch(self) -> None:
        """One batch of llama.cpp over arrays of ours, which are filled before each call."""
        api = library()
        self._token_ids = np.zeros(MAX_TOKENS, dtype=np.int32)
        self._positions = np.zeros(MAX_TOKENS, dtype=np.int32)
        self._sequences = np.zeros(MAX_TOKENS, dtype=np.int32)
        self._wanted = np.zeros(MAX_TOKENS, dtype=np.int8)
        self._counts = np.ones(MAX_TOKENS, dtype=np.int32)
        first = self._sequences.ctypes.data
        self._places = np.arange(first, first + 4 * MAX_TOKENS, 4, dtype=np.uintp)
        self._batch = api.llama_batch(
            n_tokens=0,
            token=self._token_ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            embd=None,
            pos=self._positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            n_seq_id=self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._places.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def decode(
        self, token_ids: list[int], positions: list[int], sequences: list[int], wanted: list[bool]
    ) -> Tensor | None:
        """Read tokens, all lists `[tokens]` and at most `max_tokens` long; positions of a sequence go on where it ends.

        Returns:
            Logits `[wanted tokens, vocabulary]`, float32, in the order of the tokens; None when there is no room, and then nothing
            was read.

        Raises:
            MemoryError: memory ran out.
            RuntimeError: llama.cpp failed. Some of the tokens may have been read.
        """
        number = len(token_ids)
        assert 0 < number <= self.max_tokens, f"{number} tokens are not a batch"
        self._token_ids[:number] = token_ids
        self._positions[:number] = positions
        self._sequences[:number] = sequences
        self._wanted[:number] = wanted
        self._batch.n_tokens = number
        with watch() as lines:
            code = self._decode(self._context, self._batch)
        if code == NO_ROOM:
            return None
        if code != 0:
            kind = MemoryError if code == OUT_OF_MEMORY else RuntimeError
            raise kind(f"llama.cpp could not read {number} tokens (code {code}): {reason_of(lines)}")
        num_rows = sum(wanted)
        if num_rows == 0:
            return torch.empty(0, self._width)
        rows = np.ctypeslib.as_array(self._get_logits(self._context), shape=(num_rows, self._width))
        return torch.from_numpy(rows.copy())  # the next call writes there; numpy copies in this thread alone

    def use_threads(self, number: int) -> None:
        """Threads for single tokens from now on."""
        library().llama_set_n_threads(self._context, number, self._num_threads_batch)

    def take_back(self, sequence: int, length: int) -> bool:
        """Keep the first `length` tokens of a sequence. False when it can only be forgotten as a whole; then nothing happened."""
        return bool(library().llama_memory_seq_rm(self._memory, sequence, length, -1))

    def first_position(self, sequence: int) -> int:
        """The first position from which on everything is there. llama.cpp may use cells again that no window reaches any more."""
        return int(library().llama_memory_seq_pos_min(self._memory, sequence))

    def forget(self, sequence: int) -> None:
        """Forget a whole sequence."""
        library().llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target`, which is empty, share the first `length` tokens of `source` (all of them, where layers keep states)."""
        library().llama_memory_seq_cp(self._memory, source, target, 0, length)

    def copy_whole(self, source: int, target: int) -> None:
        """Let `target`, which is empty, hold what `source` holds, states included."""
        library().llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def sequence_bytes(self, sequence: int) -> int:
        """Bytes that a sequence takes, those that say where it lies included."""
        return int(library().llama_state_seq_get_size(self._context, sequence))

    def states(self, sequence: int) -> bytes:
        """The states of a sequence's layers, without what is kept per token."""
        api = library()
        size = api.llama_state_seq_get_size_ext(self._context, sequence, ONLY_STATES)
        buffer = (ctypes.c_uint8 * size)()
        written = api.llama_state_seq_get_data_ext(self._context, buffer, size, sequence, ONLY_STATES)
        assert written == size, f"{written} of {size} bytes of a state were copied"
        return bytes(buffer)

    def restore_states(self, sequence: int, states: bytes) -> None:
        """Set the states of a sequence's layers; what is kept per token stays."""
        buffer = (ctypes.c_uint8 * len(states)).from_buffer_copy(states)
        read = library().llama_state_seq_set_data_ext(self._context, buffer, len(states), sequence, ONLY_STATES)
        if read != len(states):
            raise RuntimeError(f"llama.cpp restored {read} of {len(states)} bytes of a sequence's state")

    def take_over(self, other: LlamaCppContext) -> None:
        """Hold what `other` holds, which has the same weights.

        Raises:
            MemoryError: this context has less room than that.
        """
        api = library()
        size = api.llama_state_get_size(other._context)
        buffer = (ctypes.c_uint8 * size)()
        written = api.llama_state_get_data(other._context, buffer, size)
        with watch() as lines:
            read = api.llama_state_set_data(self._context, buffer, written)
        if read != written:
            raise MemoryError(f"llama.cpp moved {read} of {written} bytes of a context: {reason_of(lines)}")

    def close(self) -> None:
        """Give everything back."""
        library().llama_free(self._context)
        self._context = self._memory = None
