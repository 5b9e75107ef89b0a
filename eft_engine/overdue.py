"""An end for Python code that others' data keep busy: templates that loop over them, schemas that multiply.

Work in a thread cannot be stopped from outside. Here the thread looks at its own clock while it runs, whenever it calls a function
or ends a line of watched code, and leaves by an exception. What is counted is the thread's own time on a processor, so that a busy
machine ends nothing. A single call into C is not interrupted: what it is given has to be bounded before.

Looking needs the thread's trace function. Where a debugger has it, or a measurement of coverage, it keeps it and nothing is ended,
except in work for others (`for_others`: what a server does for a request).
"""

from __future__ import annotations

import inspect
import math
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any

from eft_engine.errors import EFTError, QueueFullError
from eft_engine.preparing import MOST_LONG, is_preparing, making_way

EVERY = 64
"""Events of a thread between two looks at its clock, each of which is a call of the operating system."""
SUSPENDED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
"""Flags of code that goes on where it has stopped, also only to be closed."""
LONG_S = 0.02
"""Seconds from which on work is long."""
PAUSE_EVERY_S, PAUSE_S = 0.001, 0.002
"""Long work for others rests so long after so much of it, in the threads of `preparing`: elsewhere an event loop may wait for it. A
model's pass gives the interpreter up hundreds of times, and beside a thread that never rests it waits each time until that thread
is made to let go.
"""
WATCHED = ("<template>", "<unknown>")
"""Code of which lines count too: compiled templates, whose loops call nothing."""


_is_for_others: ContextVar[bool] = ContextVar("eft_is_for_others", default=False)


class _Overdue(BaseException):
    """The time is over. No `Exception`, so that nobody takes it for a fault of what he called."""


def _is_heard(frame: FrameType, event: str) -> bool:
    """Whether somebody hears of an error that is raised here. While a generator is thrown away, or another object, nobody does, and
    the thread has lost its watch with the error.
    """
    code = frame.f_code
    return event == "line" or (event == "call" and not code.co_flags & SUSPENDED and code.co_name != "__del__")


class _Watch:
    """A trace function of one thread. What takes longer than `LONG_S` makes way for others (`preparing.making_way`) and rests."""

    def __init__(self, seconds: float) -> None:
        begun = time.thread_time()
        self._end, self._long_from = begun + seconds, begun + LONG_S
        self._rest = EVERY
        self._pause_at = self._long_from if _is_for_others.get() and is_preparing() else math.inf
        self.turn = ExitStack()
        self._is_long = self.has_no_turn = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> _Watch | None:
        self._rest -= 1
        if self._rest <= 0 and _is_heard(frame, event):
            self._rest = EVERY
            now = time.thread_time()
            if now > self._end:
                raise _Overdue
            if now > self._long_from and not self._is_long:
                self._is_long = True
                if not self.turn.enter_context(making_way()):
                    self.has_no_turn = True
                    raise _Overdue
            if now > self._pause_at:
                time.sleep(PAUSE_S)
                self._pause_at = time.thread_time() + PAUSE_EVERY_S
        return self if frame.f_code.co_filename in WATCHED else None


@contextmanager
def for_others() -> Generator[None]:
    """In this block, and in tasks and threads that take over its context, the bounds of `at_most` hold whoever traces."""
    token = _is_for_others.set(True)
    try:
        yield
    finally:
        _is_for_others.reset(token)


@contextmanager
def at_most(seconds: float, error: Callable[[], EFTError]) -> Generator[None]:
    """Run a block for so many seconds of this thread on a processor. Inside of another one, the outer one alone counts. Where the
    thread is traced by somebody else, the block runs without a bound, except in work for others.

    Raises:
        EFTError: what `error` makes, where they are over.
        QueueFullError: too much that takes long is at work in the threads of `preparing`.
    """
    before = sys.gettrace()
    if isinstance(before, _Watch) or (before is not None and not _is_for_others.get()):
        yield
        return
    watch = _Watch(seconds)
    with watch.turn:
        sys.settrace(watch)
        try:
            yield
        except _Overdue:
            raise (_too_busy() if watch.has_no_turn else error()) from None
        finally:
            sys.settrace(before)


def _too_busy() -> QueueFullError:
    return QueueFullError(
        f"{MOST_LONG} requests that take long to read are being read; ask again later",
        num_queued=MOST_LONG,
        limit=MOST_LONG,
    )
