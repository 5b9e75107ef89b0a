"""Several texts at once by hand over llama-cpp-python: one context, a sequence for each, one token of each per pass, greedy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np


class LlamaCppParallel:
    """A model and a context for `num_texts` sequences."""

    def __init__(self, file: Path, *, threads: int, num_texts: int, context_len: int = 1024) -> None:
        params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
        own = llama_cpp.llama_context_default_params()
        own.n_ctx, own.n_seq_max = context_len * num_texts, num_texts
        own.n_threads, own.n_threads_batch = threads, threads
        self._context = llama_cpp.llama_init_from_model(self._model, own)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(context_len, 0, 1)

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """`num_tokens` tokens for each prompt, which are read one after another and then written together."""
        llama_cpp.llama_memory_clear(self._memory, True)
        texts = [
            [self._read([(text, place, token) for place, token in enumerate(prompt)])[0]]
            for text, prompt in enumerate(prompts)
        ]
        for written in range(num_tokens - 1):
            rows = [(text, len(prompt) + written, texts[text][-1]) for text, prompt in enumerate(prompts)]
            for own, token in zip(texts, self._read(rows, all_rows=True), strict=True):
                own.append(token)
        return texts

    def _read(self, rows: Sequence[tuple[int, int, int]], *, all_rows: bool = False) -> list[int]:
        """Read tokens `(text, place, token)`; the most probable tokens behind the last, or behind each."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (text, place, token) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, place
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, text
            batch.logits[index] = all_rows or index == len(rows) - 1
        if status := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {status} for {len(rows)} tokens")
        number = len(rows) if all_rows else 1
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), (number, self._width))
        return [int(row.argmax()) for row in logits]
