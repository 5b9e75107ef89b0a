"""The line of the log that tells how a request ended, and the one that tells why it failed."""

from __future__ import annotations

import logging

from eft_engine import errors
from eft_integrations.server.errors import ApiError, kind_of
from eft_integrations.server.seen.logs import ACCESS, cut, without_quotations
from eft_integrations.server.seen.outcomes import STOPPED_CODE, Outcome
from eft_integrations.server.seen.records import Record, told_weights

access = logging.getLogger(ACCESS)
logger = logging.getLogger(__name__)


def log_end(record: Record, outcome: Outcome) -> None:
    """One line for every request, when it has ended."""
    results = record.results
    sent = "" if record.status in (0, outcome.status) else f" (sent as {record.status})"
    access.info(
        "%s %s %d%s",
        record.method,
        record.route,
        outcome.status,
        sent,
        extra={
            "method": record.method,
            "path": record.route,
            "status": outcome.status,
            "code": outcome.code,
            "caller": record.caller,
            "request_id": record.request_id,
            "trace_id": record.trace_id,
            "model": record.model,
            "duration_s": record.elapsed_s,
            "first_piece_s": record.first_s,
            "bytes": record.num_bytes,
            "stream": record.is_stream or None,
            "answers": record.num_answers or None,
            "prompt_tokens": sum(result.usage.prompt_tokens for result in results) if results else None,
            "completion_tokens": sum(result.usage.completion_tokens for result in results) if results else None,
            "finish_reasons": [result.finish_reason for result in results] or None,
            "reward_weights": told_weights(record) or None,
        },
    )


def log_failure(record: Record) -> None:
    """Why a request failed that was the server's fault: a line for what was foreseen, a traceback for the rest."""
    error = record.error
    known = {"request_id": record.request_id, "trace_id": record.trace_id, "path": record.route}
    if record.is_stopped:
        logger.warning("request was cut: the server stopped", extra={**known, "code": STOPPED_CODE})
        return
    if not isinstance(error, Exception) or (kind := kind_of(error)).status < 500:
        return
    known["code"] = kind.code
    if isinstance(error, ApiError | errors.EFTError):
        level = logging.ERROR if kind.status == 500 else logging.WARNING
        logger.log(level, "request failed: %s: %s", _chain(error), cut(without_quotations(str(error))), extra=known)
    else:
        logger.error("request failed: %s, which nobody foresaw", type(error).__name__, exc_info=error, extra=known)


def _chain(error: BaseException) -> str:
    """Types of an error and of its causes."""
    names = [type(error).__name__]
    while error.__cause__ is not None and len(names) < 5:
        error = error.__cause__
        names.append(type(error).__name__)
    return " from ".join(names)
