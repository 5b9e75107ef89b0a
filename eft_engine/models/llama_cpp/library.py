"""llama.cpp as llama-cpp-python brings it: whether it is there, and its log in ours. The only file that imports it.

Nothing of llama.cpp raises: a call returns null or a number, and the reason is a line of its log. `watch` collects those
lines. What ggml asserts ends the process, so everything that can be wrong is checked before a call.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eft_engine.config import LlamaCppOptions

MIN_VERSION = (0, 3, 36)
"""The oldest llama-cpp-python whose structures are those that this package fills in."""

INSTALL = "pip install 'eft-engine[llama-cpp]' (it builds llama.cpp: a C++ compiler and some minutes)"

logger = logging.getLogger(__name__)

# ggml's levels: 1 debug, 2 information, 3 warning, 4 error, 5 goes on with the line before. Ours are quieter by one: what is an
# error of a request or of loading is raised as such, and most warnings are about choices that the engine made.
_LEVELS = {1: logging.NOTSET, 2: logging.DEBUG, 3: logging.INFO, 4: logging.WARNING}
_CONTINUED = 5

_watched: list[list[str]] = []


def why_unavailable() -> str | None:
    """Why llama.cpp cannot be used here, in a few words; None when it can."""
    if importlib.util.find_spec("llama_cpp") is None:
        return "llama-cpp-python is not installed"
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return "llama_cpp is there, and it is not that of llama-cpp-python"
    if tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) < MIN_VERSION:
        return f"llama-cpp-python {version} is older than {'.'.join(map(str, MIN_VERSION))}"
    try:
        library()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # what a broken build raises
        return f"llama-cpp-python does not load: {error}"
    return None


@functools.cache
def library() -> Any:
    """The module `llama_cpp`, ready for use."""
    import llama_cpp

    llama_cpp.llama_log_set(_log_callback(llama_cpp), None)
    llama_cpp.llama_backend_init()
    return llama_cpp


@functools.cache
def _log_callback(module: Any) -> Any:
    """A C function that logs for us; kept for ever, since llama.cpp calls it for as long as it lives."""
    level = logging.DEBUG

    def log(ggml_level: int, text: bytes, _: object) -> None:
        nonlocal level
        level = level if ggml_level == _CONTINUED else _LEVELS.get(ggml_level, logging.DEBUG)
        if level < logging.INFO and not logger.isEnabledFor(level):
            return
        line = text.decode("utf-8", errors="replace").strip()
        if not line:
            return
        if level >= logging.INFO:
            for lines in _watched:
                lines.append(line)
        logger.log(level, "%s", line)

    return module.llama_log_callback(log)


@contextmanager
def watch() -> Iterator[list[str]]:
    """Warnings and errors that llama.cpp logs inside the block, oldest first."""
    lines: list[str] = []
    _watched.append(lines)
    try:
        yield lines
    finally:
        _watched[:] = [own for own in _watched if own is not lines]


def reason_of(lines: list[str]) -> str:
    """What to tell of a failure: the last lines of the log, without the names of functions."""
    said = [line.rpartition("): ")[2] or line for line in lines[-3:]]
    return "; ".join(said) or "llama.cpp gave no reason"


def threads_of(options: LlamaCppOptions) -> tuple[int, int]:
    """Threads for single tokens and for everything else; by default as many as torch takes (`OMP_NUM_THREADS`, or the cores)."""
    import torch

    number = options.n_threads or min(torch.get_num_threads(), os.cpu_count() or 1)
    return number, options.n_threads_batch or number


def computes_on_gpu() -> bool:
    """Whether llama.cpp was built for a GPU, and there is one."""
    return bool(library().llama_supports_gpu_offload())
