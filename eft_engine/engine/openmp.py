"""Idle OpenMP workers of threads that wait.

Every thread that runs torch on a CPU gets a pool of OpenMP workers of its own. GNU's runtime lets workers spin between parallel
regions, but only while all pools together are no larger than the machine; else they sleep at once, and every region pays for
waking them: decoding takes about twice as long (see `benchmarks/cpu.py`). So a thread that hands work to another one, or
runs out of work, gives its pool back. The next parallel region of that thread makes a new one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

_PAUSE_SOFT = 1
"""`omp_pause_soft` of the OpenMP 5.0 specification, section 3.2.43: state that may be needed again is kept."""


def release_workers() -> None:
    """End the calling thread's OpenMP workers. Does nothing where torch does not run on OpenMP, or an old one.

    Costs about a microsecond when there are none.
    """
    pause = _openmp_function("omp_pause_resource_all")
    if pause is not None:
        pause(_PAUSE_SOFT)


def compute_alone() -> None:
    """From now on torch computes in the calling thread alone; other threads are not changed.

    For a thread whose networks run in llama.cpp: that has workers of its own, and idle ones of torch's would take their cores. Does
    nothing where torch does not run on OpenMP.
    """
    function = _openmp_function("omp_set_num_threads")
    if function is not None:
        torch.get_num_threads()  # torch sets the thread's number when it is first asked
        function(1)


@contextlib.contextmanager
def num_threads(number: int) -> Iterator[None]:
    """Inside, torch computes with this many threads: in the calling thread, and in threads that begin to compute there."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def _openmp_function(name: str) -> Callable[[int], int] | None:
    """A function of the OpenMP library that torch has loaded."""
    if os.name != "posix" or "OpenMP" not in torch.__config__.parallel_info():
        return None
    for library in sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*.so*")):
        try:
            loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD)
            function: Callable[[int], int] = getattr(loaded, name)
        except (OSError, AttributeError):  # not loaded, or before OpenMP 5.0
            continue
        function.argtypes, function.restype = [ctypes.c_int], ctypes.c_int  # type: ignore[attr-defined]
        return function
    return None
