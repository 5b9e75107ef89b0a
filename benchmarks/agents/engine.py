"""The trio of GGUF files: in this process, with an ear on its raw texts, or behind `eft serve`."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eft_engine import Engine, EngineConfig, GenerationDelta, Term, TunedPair
from eft_engine.config import LlamaCppOptions

START_S = 300
"""Longest time that a server may take to answer."""
SERVE = "from eft_engine.cli import main; main()"


@dataclass(frozen=True)
class Trio:
    """Where the models are; `adapter` is a LoRA on the reference, a folder or a GGUF file. Without one the small model is there for
    prompt pairs, and has no weight of its own.
    """

    base: Path
    reference: Path
    adapter: Path | None
    threads: int

    def __post_init__(self) -> None:
        for name in ("base", "reference", "adapter"):
            path = getattr(self, name)
            if path is not None and not path.exists():
                raise FileNotFoundError(f"--{name}: there is no {path}; see docs/gguf.md for the files of a trio")

    def load(self) -> Engine:
        """Load it."""
        config = EngineConfig(llama_cpp=LlamaCppOptions(n_threads=self.threads))
        if self.adapter is None:
            return Engine.load(str(self.base), pairs={"small": Term(str(self.reference), weight=0.0)}, config=config)
        pair = TunedPair(str(self.adapter), str(self.reference))
        return Engine.load(str(self.base), pairs={"form": pair}, config=config)


class Listener:
    """An engine whose texts are kept as they were generated; in all else it is the engine."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.texts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def stream(self, prompt: Any, **options: Any) -> Iterator[GenerationDelta]:
        """See `Engine.stream`."""
        return self._heard(self._engine.stream(prompt, **options), self._new_text())

    async def astream(self, prompt: Any, **options: Any) -> AsyncIterator[GenerationDelta]:
        """See `Engine.astream`."""
        index = self._new_text()
        async with contextlib.aclosing(self._engine.astream(prompt, **options)) as deltas:
            async for delta in deltas:
                self.texts[index] += delta.text_delta
                yield delta

    def _heard(self, deltas: Any, index: int) -> Iterator[GenerationDelta]:
        with contextlib.closing(deltas):
            for delta in deltas:
                self.texts[index] += delta.text_delta
                yield delta

    def _new_text(self) -> int:
        self.texts.append("")
        return len(self.texts) - 1

    def take(self) -> list[str]:
        """The texts since the last time."""
        texts = list(self.texts)
        self.texts.clear()
        return texts


@contextlib.contextmanager
def listening(trio: Trio) -> Iterator[Listener]:
    """The engine in this process, for as long as the block lasts."""
    engine = trio.load()
    try:
        yield Listener(engine)
    finally:
        engine.close()


@contextlib.contextmanager
def serving(trio: Trio) -> Iterator[str]:
    """`eft serve` in a process of its own; its address as clients want it. The model is called eft there.

    Raises:
        RuntimeError: it ended, or does not answer; with the last lines that it wrote.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = ["--base", trio.base, "--pair", f"form={trio.adapter},{trio.reference}"]
    command = [sys.executable, "-c", SERVE, "serve", "--name", "eft", "--port", port, *files]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(trio.threads)},
        )
        try:
            url = f"http://127.0.0.1:{port}/v1"
            if not _answers(url, process):
                log.seek(0)
                raise RuntimeError(f"eft serve does not answer at {url}: {log.read()[-2000:]}")
            yield url
        finally:
            process.terminate()
            process.wait(60)


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    ends = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < ends:
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    return False
