"""What the server logs, as a test reads it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

from eft_integrations.server.seen.logs import LogFormat, LogLevel, configure


class Lines(io.StringIO):
    """Where log lines go."""

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Every line as JSON; one that is none fails the test."""
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def of(self, logger: str) -> list[dict[str, Any]]:
        """Those of a logger whose name ends so."""
        return [line for line in self.objects if line["logger"].endswith(logger)]


@contextlib.contextmanager
def logging_as_before() -> Iterator[None]:
    """Undoes what the block configures."""
    root, names = (
        logging.getLogger(),
        ["eft_engine", "eft_integrations", "httpx", "httpcore", "uvicorn", "transformers"],
    )
    before = (list(root.handlers), root.level, sys.excepthook, threading.excepthook, sys.unraisablehook)
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:], level_before, sys.excepthook, threading.excepthook, sys.unraisablehook = before
        root.setLevel(level_before)
        for name, number in levels.items():
            logging.getLogger(name).setLevel(number)


@contextlib.contextmanager
def logging_to(style: LogFormat = "json", level: LogLevel = "info") -> Iterator[Lines]:
    """The configuration of `eft serve`, with lines that the test can read; undone afterwards."""
    lines = Lines()
    with logging_as_before():
        with contextlib.redirect_stderr(lines):
            configure(style, level)
        yield lines
