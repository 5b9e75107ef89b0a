"""Threads in which requests are made ready: prompts rendered and tokenised, schemas compiled. An event loop waits for them.

They are none of the loop's own threads: others, who want these for a moment, do not stand behind a long prompt. Few of them work at
once, since each takes its part of the interpreter from the loop and from the engine; what takes long makes way for what does not.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

MAX_THREADS = 256
"""Most of them wait."""
SHORT_AT_ONCE = max(4, min(os.cpu_count() or 4, 32))
LONG_AT_ONCE = 2
"""Of works that their watch (`overdue.at_most`) has found to be long."""
MOST_LONG = 128
"""Such works, also those that wait for their turn: they must leave threads to others."""

Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")


class _Turns(threading.local):
    """What the thread works on: whether it is one of these threads, and its work has a turn among short works."""

    is_preparing = False
    is_short = False


class _Places:
    """How many may work at once."""

    def __init__(self) -> None:
        self.short = threading.Semaphore(SHORT_AT_ONCE)
        self.long = threading.Semaphore(LONG_AT_ONCE)
        self.long_ones = threading.Semaphore(MOST_LONG)


_own = _Turns()
_places = _Places()


@contextmanager
def _turn() -> Generator[None]:
    _places.short.acquire()
    _own.is_preparing = _own.is_short = True
    try:
        yield
    finally:
        _own.is_preparing = False
        if _own.is_short:
            _own.is_short = False
            _places.short.release()


def is_preparing() -> bool:
    """Whether the caller runs in one of these threads, where nobody's event loop waits for it."""
    return _own.is_preparing


@contextmanager
def making_way() -> Generator[bool]:
    """Give the turn up to shorter works, and go on, until the block ends, when it is the turn of a long one. Nothing outside of
    these threads. Gives False, and waits for nothing, where too many wait already.
    """
    if not _own.is_short:
        yield True
        return
    places = _places
    if not places.long_ones.acquire(blocking=False):
        yield False
        return
    _own.is_short = False
    places.short.release()
    try:
        with places.long:
            yield True
    finally:
        places.long_ones.release()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="eft-prepare")


async def prepared(make: Callable[Arguments, Found], *args: Arguments.args, **keywords: Arguments.kwargs) -> Found:
    """Call a function in such a thread. If the task is cancelled, it is not called, or what it returns is dropped."""
    context = contextvars.copy_context()
    is_wanted = True

    def call() -> Found:
        with _turn():
            if not is_wanted:
                raise asyncio.CancelledError
            return context.run(make, *args, **keywords)

    try:
        return await asyncio.get_running_loop().run_in_executor(_pool(), call)
    finally:
        is_wanted = False


def _begin_anew() -> None:
    """In a forked child: none of these threads is there."""
    global _places
    _pool.cache_clear()
    _places = _Places()


os.register_at_fork(after_in_child=_begin_anew)
