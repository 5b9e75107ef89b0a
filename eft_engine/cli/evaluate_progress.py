"""How far an evaluation is: a bar on a terminal, plain lines elsewhere; and how it is stopped, so that nothing is lost."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from eft_engine.cli.times import duration
from eft_engine.evaluation.settings import Setting

FIRST_LINES_S = 10.0
"""Seconds between plain lines at first; later a twentieth of the time so far."""


class EvaluationProgress:
    """Answers that are there, of how many, and about how long the others take. Members that answer alone are timed by themselves:
    they are smaller.
    """

    def __init__(self, *, settings: int, members: int, stream: TextIO | None = None) -> None:
        """`settings` and `members`: answers that there will be."""
        self._planned = {False: settings, True: members}
        self._seconds = {False: 0.0, True: 0.0}
        self._new = {False: 0, True: 0}
        self._done: dict[str, int] = {}
        self._is_member: dict[str, bool] = {}
        self._now: tuple[Setting, int, int] | None = None
        self._started = self._last = self._written = time.monotonic()
        self._stream = sys.stderr if stream is None else stream
        console = Console(file=self._stream)
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[time]}"),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("", total=settings + members, time="")

    def __enter__(self) -> EvaluationProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def num_done(self) -> int:
        """Answers that are there, also from before an interruption."""
        return sum(self._done.values())

    @property
    def num_planned(self) -> int:
        """Answers that there will be."""
        return max(self.num_done, sum(self._planned.values()))

    def advance(self, setting: Setting, done: int, total: int) -> None:
        """So many answers at a setting are there."""
        key, kind, now = setting.key(), setting.member is not None, time.monotonic()
        before = self._done.get(key)
        begins = before is None or done <= before
        if not begins:
            self._seconds[kind] += now - self._last
            self._new[kind] += done - (before or 0)
        self._done[key] = max(done, before or 0)
        self._is_member[key] = kind
        self._last = now
        self._now = setting, done, total
        self._show(at_once=begins or done == total)

    def wait(self) -> None:
        """Time passes."""
        self._show(at_once=False)

    def _show(self, *, at_once: bool) -> None:
        if self._now is None:
            return
        setting, done, total = self._now
        name = setting.name if setting.member else f"weight {setting.name}"
        elapsed = time.monotonic() - self._started
        times = ", ".join([duration(elapsed), *self._left()])
        if self._bar is not None:
            told = f"{name}: {done} of {total}"
            self._bar.update(self._task, description=told, completed=self.num_done, total=self.num_planned, time=times)
            return
        pause = max(FIRST_LINES_S, elapsed / 20)
        if not at_once and time.monotonic() - self._written < pause:
            return
        self._written = time.monotonic()
        self._stream.write(
            f"{name}: {done} of {total} answers; {self.num_done} of {self.num_planned} in all, {times}\n"
        )
        self._stream.flush()

    def _left(self) -> list[str]:
        """About how long it still takes; nothing where that cannot be known yet."""
        seconds = 0.0
        for kind, planned in self._planned.items():
            done = sum(count for key, count in self._done.items() if self._is_member[key] == kind)
            if planned > done:
                if not self._new[kind]:
                    return []
                seconds += (planned - done) * self._seconds[kind] / self._new[kind]
        return [f"about {duration(seconds)} left"] if seconds else []


class StoppedBySignal(BaseException):
    """SIGINT or SIGTERM arrived. No Exception: nothing on the way takes it for a failure of its own."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Signals:
    """Inside of it SIGINT and SIGTERM raise `StoppedBySignal`: at once, or, while `is_patient` is set, in `check`, where nothing is
    half done; the second one at once.
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.is_patient = False
        self._arrived: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # the only one that may
            self._before = {number: signal.signal(number, self._arrive) for number in self.NUMBERS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def check(self) -> None:
        """Raise what has arrived."""
        if self._arrived is not None:
            raise StoppedBySignal(self._arrived)

    def _arrive(self, signum: int, frame: FrameType | None) -> None:
        if not self.is_patient or self._arrived is not None:
            raise StoppedBySignal(signum)
        self._arrived = signum
