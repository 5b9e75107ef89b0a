"""Logs: one configuration for every logger of the process, as lines of text or of JSON.

Lines hold names and numbers. Texts of users and keys are never put into one; what an error quotes is cut.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import math
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

from eft_engine import errors
from eft_integrations.json_types import Json
from eft_integrations.server.seen.records import current

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

OWN = ("eft_engine", "eft_integrations")
"""Loggers that the level `debug` is for. Debug lines of other libraries may hold what users wrote."""
QUIET = ("httpx", "httpcore")
"""They would log the address of every request to another server."""
OURS_ALONE = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "transformers")
"""Loggers that come with handlers of their own."""

ACCESS = "eft_integrations.server.access"
"""The logger of the lines that tell how requests ended."""
IN_MESSAGE = frozenset({"method", "path", "status"})
"""What the message of such a line says itself."""
NOT_EXTRA = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
QUOTED = re.compile(r"""(['"])(?=(?:(?!\1).)*(?:\s|[^\x00-\x7f]))(?:(?!\1).){16,}\1""")
"""A long quotation with blanks or letters beyond ASCII: neither a name nor a path."""
MOST_LINE, MOST_LINES = 300, 200
"""Characters of a line of a traceback, and its lines."""


class OfRequest(logging.Filter):
    """Writes the id of the request, within which something is logged, into the line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True."""
        request = current()
        if request.request_id and not hasattr(record, "request_id"):
            record.request_id = request.request_id
        if request.trace_id and not hasattr(record, "trace_id"):
            record.trace_id = request.trace_id
        return True


class NotCut(logging.Filter):
    """Leaves out uvicorn's tracebacks of requests that were cut when the server stopped; `access_log` tells of those."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False where it is one of them."""
        return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class TextLines(logging.Formatter):
    """`time level logger: message name=value ...`, and a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, but for the traceback."""
        time = self.formatTime(record)
        line = f"{time} {record.levelname} {record.name}: {_message(record)}"
        said = IN_MESSAGE if record.name == ACCESS else frozenset()
        line += "".join(f" {name}={_short(value)}" for name, value in _extra(record).items() if name not in said)
        return "\n".join([line.replace("\n", "\\n").replace("\r", "\\r"), *_traceback(record)])


class JsonLines(logging.Formatter):
    """One JSON object a line, in ASCII: time, level, logger, message, what else is known, an error's type and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Json] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        line |= {name: _plain(value) for name, value in _extra(record).items() if name not in line}
        if trace := _traceback(record):
            kind = record.exc_info[0] if record.exc_info else None
            line |= {"error": None if kind is None else kind.__name__, "traceback": "\n".join(trace)}
        return json.dumps(line, allow_nan=False)


def configure(style: LogFormat, level: LogLevel) -> None:
    """Let every logger of this process, warnings and exceptions that nobody catches write such lines to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    handler.addFilter(OfRequest())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    number = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(number, logging.INFO))
    for name in OWN:
        logging.getLogger(name).setLevel(number)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    if style == "json" and importlib.util.find_spec("transformers") is not None:
        from transformers.utils import logging as transformers_logging

        transformers_logging.get_logger()  # which gives its loggers their handler
    for name in OURS_ALONE:
        own = logging.getLogger(name)
        own.handlers.clear()
        own.propagate = True
        if name.startswith("uvicorn"):
            own.setLevel(logging.NOTSET)
            own.filters[:] = [NotCut()]
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable


@contextmanager
def telling_failures(style: LogFormat) -> Iterator[None]:
    """In JSON, an exception that ends the process is a line too; in text the command line tells it as ever.

    Raises:
        SystemExit: instead of the exception.
    """
    try:
        yield
    except Exception as error:
        if style == "text":
            raise
        foreseen = isinstance(error, errors.EFTError)
        logging.getLogger(__name__).critical("the server failed: %s", error, exc_info=None if foreseen else error)
        raise SystemExit(1) from None


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logger = logging.getLogger(__name__)
    if issubclass(kind, KeyboardInterrupt):
        logger.warning("interrupted")
        return
    logger.critical("an exception that nobody caught ends the process", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is None or issubclass(args.exc_type, SystemExit):
        return
    name = args.thread.name if args.thread is not None else "unknown"
    logging.getLogger(__name__).critical(
        "an exception that nobody caught ends the thread %s",
        name,
        exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
    )


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    if args.exc_value is not None:
        logging.getLogger(__name__).error(
            "an exception that could not be raised", exc_info=(args.exc_type, args.exc_value, args.exc_traceback)
        )


# ---- parts of a line -----------------------------------------------------------------------------------------------------


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # a line that is wrongly written is still a line
        return f"{record.msg} (its values do not fit: {type(error).__name__})"


def _extra(record: logging.LogRecord) -> dict[str, object]:
    """What was logged beside the message."""
    return {name: value for name, value in vars(record).items() if name not in NOT_EXTRA and value is not None}


def _short(value: object) -> str:
    """A value in a line of text."""
    match value:
        case float():
            return f"{value:.6g}"
        case Mapping():
            return ",".join(f"{name}:{_short(own)}" for name, own in value.items())
        case list() | tuple():
            return ",".join(_short(own) for own in value)
    return str(value)


def _plain(value: object, depth: int = 0) -> Json:
    """A value as JSON can hold it, whatever it is."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return round(value, 6) if math.isfinite(value) else str(value)
        case Mapping() if depth < 6:
            return {str(name): _plain(own, depth + 1) for name, own in value.items()}
        case list() | tuple() | set() | frozenset() if depth < 6:
            return [_plain(own, depth + 1) for own in value]
    return repr(value)


def _traceback(record: logging.LogRecord) -> list[str]:
    """Lines of a traceback, each cut, without long texts that its messages quote."""
    if not record.exc_info or record.exc_info[1] is None:
        return []
    lines = "".join(traceback.format_exception(*record.exc_info)).splitlines()
    if len(lines) > MOST_LINES:
        left_out = f"... ({len(lines) - MOST_LINES} lines)"
        lines = [*lines[: MOST_LINES // 2], left_out, *lines[-MOST_LINES // 2 :]]
    return [cut(line if line.startswith("  ") else without_quotations(line)) for line in lines]


def without_quotations(text: str) -> str:
    """A text in which the length of long quotations stands for them."""
    return QUOTED.sub(_length, text)


def _length(quoted: re.Match[str]) -> str:
    return f"<{len(quoted[0]) - 2} characters>"


def cut(line: str) -> str:
    """A line as long as it may be."""
    return line if len(line) <= MOST_LINE else f"{line[:MOST_LINE]}..."
