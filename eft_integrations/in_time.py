"""Pieces of an answer that come in time, or not at all."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Literal

from eft_integrations.chat.request import ChatDelta
from eft_integrations.pieces import Pieces


def late(timeout_s: float | None) -> TimeoutError:
    """What whoever reads an answer is told when its time is over."""
    return TimeoutError(f"no whole answer within {timeout_s} s; the request was cancelled")


class InTime:
    """Reads an answer in a thread of its own, so that whoever waits for a piece waits no longer than there is time.

    The request is made there too, since an engine may have to be loaded for it; this is over once it was made.

    Args:
        ask: makes the request, and gives its pieces.
        timeout_s: seconds that the whole answer may take, from now on.

    Raises:
        TimeoutError: the request was not even made in time; or whatever `ask` raises.
    """

    def __init__(self, ask: Callable[[], Iterator[ChatDelta]], *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._events: queue.SimpleQueue[ChatDelta | BaseException | Literal["asked", "over"]] = queue.SimpleQueue()
        self._deltas: Iterator[ChatDelta] | None = None
        self._is_left = self._is_over = False
        context = contextvars.copy_context()
        reader = threading.Thread(target=context.run, args=(self._read, ask), name="eft-in-time", daemon=True)
        reader.start()
        try:
            self._take()
        except BaseException:
            self.leave()
            raise

    def pieces(self) -> Generator[ChatDelta]:
        """The pieces.

        Raises:
            TimeoutError: the time is over; the request was cancelled. Otherwise as the answer itself.
        """
        while isinstance(delta := self._take(), ChatDelta):
            yield delta

    def leave(self) -> None:
        """End the request, if it is not over. May be called from any thread."""
        self._is_left = True
        if isinstance(self._deltas, Pieces) and not self._is_over:
            self._deltas.interrupt()

    def _take(self) -> ChatDelta | Literal["asked", "over"]:
        seconds = min(max(self._deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
        try:
            event = self._events.get(timeout=seconds)
        except queue.Empty:
            raise late(self._timeout_s) from None
        if isinstance(event, BaseException):
            raise event
        return event

    def _read(self, ask: Callable[[], Iterator[ChatDelta]]) -> None:
        """In the thread of its own. What goes wrong is told to whoever reads, or concerns nobody any more."""
        try:
            self._deltas = ask()
            self._events.put("asked")
            for delta in () if self._is_left else self._deltas:
                self._events.put(delta)
                if self._is_left:
                    break
                if delta.result is None and time.monotonic() > self._deadline:
                    raise late(self._timeout_s)
            self._is_over = True
            self._events.put("over")
        except BaseException as error:
            self._events.put(error)
        finally:
            if isinstance(self._deltas, Generator):
                self._deltas.close()
