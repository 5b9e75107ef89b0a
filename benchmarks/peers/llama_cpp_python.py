"""llama-cpp-python's own loop for one model, greedy, as its users run it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp


class LlamaCppPython:
    """`llama_cpp.Llama` with its defaults."""

    def __init__(self, file: Path, *, threads: int, n_ctx: int = 4096) -> None:
        self.llm: Any = llama_cpp.Llama(
            model_path=str(file), n_ctx=n_ctx, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def plain(self, prompt: Sequence[int]) -> Iterator[int]:
        """`Llama.generate` at temperature 0: token by token, without an end; the prompt is read from its start."""
        self.llm.reset()
        yield from self.llm.generate(list(prompt), temp=0.0, repeat_penalty=1.0)
