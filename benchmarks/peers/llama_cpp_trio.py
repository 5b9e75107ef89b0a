"""Composed greedy decoding by hand over llama-cpp-python: three contexts, numpy, one loop."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]


def log_softmax(logits: Rows) -> Rows:
    """Over the last axis, in float32."""
    shifted: Rows = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


class Context:
    """One text in one network."""

    def __init__(self, model: Any, *, threads: int, n_ctx: int = 4096) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_threads, params.n_threads_batch = n_ctx, threads, threads
        self.handle = llama_cpp.llama_init_from_model(model, params)
        self.memory = llama_cpp.llama_get_memory(self.handle)
        self.width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.length = 0

    def decode(self, tokens: Sequence[int], *, all_rows: bool = False) -> Rows:
        """Read on; gives the logits after the last token, or after each, `[rows, vocab]`, valid until the next call."""
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        batch = llama_cpp.llama_batch_get_one(ids, len(tokens))
        if all_rows:
            batch.logits = (ctypes.c_int8 * len(tokens))(*[1] * len(tokens))
        if status := llama_cpp.llama_decode(self.handle, batch):
            raise RuntimeError(f"llama_decode returned {status} for {len(tokens)} tokens after {self.length}")
        self.length += len(tokens)
        shape = (len(tokens) if all_rows else 1, self.width)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.handle), shape)

    def read(self, tokens: Sequence[int], *, all_rows: bool = False) -> Rows:
        """As `decode`, but log-probabilities."""
        return log_softmax(self.decode(tokens, all_rows=all_rows))

    def take_back(self, length: int) -> None:
        """Forget what was read after the first `length` tokens."""
        llama_cpp.llama_memory_seq_rm(self.memory, 0, length, -1)
        self.length = length


class LlamaCppTrio:
    """Base, tuned (a GGUF adapter on the reference) and reference; each call starts from an empty text."""

    def __init__(self, base: Path, reference: Path, adapter: Path, *, threads: int) -> None:
        params = llama_cpp.llama_model_default_params()
        large, small = (llama_cpp.llama_model_load_from_file(str(f).encode(), params) for f in (base, reference))
        self.base, self.tuned, self.reference = (Context(model, threads=threads) for model in (large, small, small))
        lora = llama_cpp.llama_adapter_lora_init(small, str(adapter).encode())
        loras = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora)
        llama_cpp.llama_set_adapters_lora(self.tuned.handle, loras, 1, (ctypes.c_float * 1)(1.0))

    def start(self, prompt: Sequence[int]) -> list[Rows]:
        """Read a new prompt in all three; gives the rows after it."""
        for context in (self.base, self.tuned, self.reference):
            context.take_back(0)
        return self.read(prompt)

    def read(self, tokens: Sequence[int]) -> list[Rows]:
        """Read on in all three; gives the rows after the last token, of base, tuned and reference."""
        return [context.read(tokens) for context in (self.base, self.tuned, self.reference)]

    def plain(self, prompt: Sequence[int]) -> Iterator[int]:
        """The base alone, token by token, without an end."""
        self.base.take_back(0)
        row = self.base.decode(prompt)
        while True:
            token = int(row.argmax())
            yield token
            row = self.base.decode([token])

    def composed(self, prompt: Sequence[int], *, weight: float) -> Iterator[int]:
        """`base + weight * (tuned - reference)`, token by token, without an end."""
        base, tuned, reference = self.start(prompt)
        while True:
            token = int((base + weight * (tuned - reference)).argmax())
            yield token
            base, tuned, reference = self.read([token])

    def drafted(self, prompt: Sequence[int], *, weight: float, num_drafts: int) -> Iterator[int]:
        """As `composed`; the tuned model guesses `num_drafts` tokens, which base and reference read in one block."""
        base, tuned, reference = self.start(prompt)
        token = int((base + weight * (tuned - reference)).argmax())
        yield token
        while True:
            read, block, rows = self.base.length, [token], []
            for _ in range(num_drafts):
                rows.append(self.tuned.read(block[-1:]))
                block.append(int(rows[-1].argmax()))
            base, reference = (c.read(block, all_rows=True) for c in (self.base, self.reference))
            for index in range(num_drafts + 1):
                if index == num_drafts:  # all drafts were right
                    rows.append(self.tuned.read(block[-1:]))
                token = int((base[index] + weight * (rows[index][0] - reference[index])).argmax())
                yield token
                if index < num_drafts and token != block[index + 1]:
                    break
            for context in (self.base, self.tuned, self.reference):
                context.take_back(read + index + 1)
