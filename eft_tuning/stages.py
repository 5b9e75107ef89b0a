"""How far each stage of a run is: a display on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0
"""Without a terminal, at most one line of a stage in so many seconds, but for its last."""

Advance = Callable[[int, str], None]
"""Told how much of a stage is done, and what to say of it."""

OnProgress = Callable[[int, int], None]
"""Called with what is done of a stage, and all of it."""


class Reporter:
    """Stages of a run, one after the other, on stderr."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._quiet = quiet

    def say(self, text: str) -> None:
        """One line."""
        if not self._quiet:
            self._console.print(text, markup=False, soft_wrap=True, highlight=False)

    @contextmanager
    def stage(self, title: str, total: int) -> Generator[Advance]:
        """A stage of so many parts; what is yielded is told of each state."""
        if self._quiet:
            yield lambda done, told: None
            return
        if not self._console.is_terminal:
            yield _Lines(self.say, title, total)
            return
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[told]}"),
        )  # fmt: skip
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(title, total=total, told="")
            yield lambda done, told: progress.update(task, completed=done, told=told)

    @contextmanager
    def counting(self, title: str) -> Generator[OnProgress]:
        """A stage whose size is known once something of it is done; what is yielded is told of both."""
        with ExitStack() as open_stage:
            size: int | None = None
            advance: Advance

            def tell(done: int, total: int) -> None:
                nonlocal size, advance
                if total != size:
                    open_stage.close()
                    size, advance = total, open_stage.enter_context(self.stage(title, total))
                advance(done, "")

            yield tell


class _Lines:
    """Lines instead of a display: the first and the last state, and one now and then."""

    def __init__(self, say: Callable[[str], None], title: str, total: int) -> None:
        self._say, self._title, self._total = say, title, total
        self._last = 0.0

    def __call__(self, done: int, told: str) -> None:
        now = time.monotonic()
        if done < self._total and now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        self._say(f"{self._title}: {done} of {self._total}" + (f", {told}" if told else ""))
