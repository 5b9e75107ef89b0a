"""How a request ended, in truth: a stream that fails or is left has begun with status 200."""

from __future__ import annotations

from dataclasses import dataclass

from eft_engine import errors
from eft_integrations.server.errors import ApiError, kind_of
from eft_integrations.server.seen.records import Record

CLIENT_LEFT, STOPPED = 499, 503
STOPPED_CODE = "shutting_down"
PROBES = frozenset({"/health", "/ready", "/metrics"})
"""What is asked every few seconds: neither traced nor, while all is well, logged. A 503 of theirs is an answer, no failure."""
UNFORESEEN = "unforeseen"
"""The type, in metrics, of errors that are neither ours nor the engine's."""


@dataclass(frozen=True)
class Outcome:
    """Status, and of what is no answer the code and the type of the error. `has_broken_off`: a failure behind status 200."""

    status: int
    code: str | None = None
    type: str | None = None
    has_broken_off: bool = False

    @classmethod
    def of(cls, record: Record) -> Outcome:
        """Of a request that has ended."""
        if record.error is not None and isinstance(record.error, Exception):
            kind = kind_of(record.error)
            return cls(kind.status, kind.code, type_of(record.error), has_broken_off=record.status == 200)
        if record.is_stopped:
            return cls(STOPPED, STOPPED_CODE, has_broken_off=record.status == 200)
        if record.status in (0, CLIENT_LEFT) or not record.is_whole:
            return cls(CLIENT_LEFT, "client_left")
        return cls(record.status, record.refusal)


def type_of(error: BaseException) -> str:
    """The type of an error as metrics call it: one of a known number."""
    return type(error).__name__ if isinstance(error, ApiError | errors.EFTError) else UNFORESEEN
