"""Lets go of an engine some time after it was last used."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eft_integrations.durations import FOREVER

logger = logging.getLogger(__name__)


class Use:
    """One use of what is loaded, which holds it until `end` is called."""

    def __init__(self, keeper: KeepAlive, keep_s: float | None) -> None:
        self._keeper = keeper
        self.keep_s = keep_s

    def end(self) -> None:
        """It is over. May be repeated. Takes no lock, so that finalizers may call it, which run at any moment in any thread."""
        self._keeper._end(self)


def _wait(ended: queue.SimpleQueue[None], seconds: float) -> bool:
    """Whether something came within these seconds."""
    try:
        ended.get(timeout=None if seconds == FOREVER else min(max(seconds, 0.0), threading.TIMEOUT_MAX))
    except queue.Empty:
        return False
    return True


class KeepAlive:
    """Knows the uses of something that is loaded, and lets it go some time after the last one.

    A thread of its own waits for that time; it is there once a use has named one.

    Args:
        detach: takes what is loaded away from those who come, and returns what ends it; None: nothing is loaded. Must be quick.
        clock: seconds.
        wait: waits for a use to end, at most for seconds; whether one did.

    `loading` is to be held by whoever loads, so that nothing is loaded while the one before it is still being let go.
    """

    def __init__(
        self,
        detach: Callable[[], Callable[[], None] | None],
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[queue.SimpleQueue[None], float], bool] = _wait,
    ) -> None:
        self.loading = threading.Lock()
        self._detach = detach
        self._clock = clock
        self._wait = wait
        self._lock = threading.Lock()
        self._uses: set[Use] = set()
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._said_s = FOREVER
        self._is_unwanted = self._is_over = False
        self._watcher: threading.Thread | None = None

    def begin(self, keep_s: float | None = None) -> Use:
        """A use begins: nothing is let go before it has ended. Never waits for long.

        Args:
            keep_s: seconds that it stays after this use, if no other follows; `FOREVER` for no end; None: this use says nothing of
                it, and what was said last holds.
        """
        use = Use(self, keep_s)
        with self._lock:
            self._uses.add(use)
            if keep_s is not None and keep_s < FOREVER:
                self._start_watcher()
        return use

    @contextmanager
    def use(self) -> Iterator[None]:
        """A use that says nothing of how long what it used shall stay."""
        use = self.begin()
        try:
            yield
        finally:
            use.end()

    def let_go(self) -> None:
        """Let go now, if nobody uses it; else as soon as nobody does."""
        if not self._let_go_if_idle():
            self._is_unwanted = True
            with self._lock:
                self._start_watcher()
            self._ended.put(None)

    def stop(self) -> None:
        """Let go of nothing any more."""
        self._is_over = True
        self._ended.put(None)

    def _end(self, use: Use) -> None:
        try:
            self._uses.remove(use)
        except KeyError:
            return
        if use.keep_s is not None:
            self._said_s = use.keep_s
        if self._watcher is not None:
            self._ended.put(None)

    def _start_watcher(self) -> None:
        """With the lock held."""
        if self._watcher is None and not self._is_over:
            self._watcher = threading.Thread(target=self._watch, name="eft-keep-alive", daemon=True)
            self._watcher.start()

    def _watch(self) -> None:
        due = FOREVER
        while not self._is_over:
            if self._wait(self._ended, due - self._clock()):
                due = self._clock() + (0.0 if self._is_unwanted else self._said_s)
                continue
            due = FOREVER
            try:
                self._let_go_if_idle()
            except Exception:  # the next use would hear nothing of it, and loads again
                logger.exception("an engine that nobody uses could not be closed")

    def _let_go_if_idle(self) -> bool:
        with self.loading:
            with self._lock:
                if self._uses:
                    return False
                self._is_unwanted = False
                finish = self._detach()
            if finish is not None:
                finish()
            return True
