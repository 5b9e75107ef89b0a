"""Errors of the engine as LangChain's own, which retries, fallbacks and middleware of agents know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core import exceptions

from eft_engine import errors

LANGCHAINS_ERRORS: dict[type[Exception], type[exceptions.ModelError]] = {
    TimeoutError: exceptions.ModelTimeoutError,
    errors.ContextOverflowError: exceptions.ContextOverflowError,
    errors.KVCacheBudgetError: exceptions.ContextOverflowError,
    errors.ModelNotFoundError: exceptions.ModelNotFoundError,
    errors.QueueFullError: exceptions.ModelRateLimitError,
    errors.RequestError: exceptions.ModelInvalidRequestError,
    errors.ConfigurationError: exceptions.ModelInvalidRequestError,
    errors.NonFiniteLogitsError: exceptions.ModelError,
    errors.GenerationError: exceptions.ModelAPIError,
    errors.EFTError: exceptions.ModelError,
}
"""The first kind that an error of the engine is of decides. A ModelError is none that may go away by asking again: what cannot be
loaded, an engine that was closed, a process that is lost.
"""

OF_STATUS: dict[int, type[exceptions.ModelError]] = {
    401: exceptions.ModelAuthenticationError,
    403: exceptions.ModelPermissionDeniedError,
    404: exceptions.ModelNotFoundError,
    408: exceptions.ModelTimeoutError,
    429: exceptions.ModelRateLimitError,
}
"""By what a server answers; other 4xx are wrong requests, 5xx its failures."""


def langchains_error(error: Exception) -> exceptions.ModelError:
    """LangChain's error of one of the engine's, with the same words.

    >>> type(langchains_error(errors.EngineClosedError("closed"))).__name__
    'ModelError'
    """
    if isinstance(error, errors.RemoteServerError):
        return _of_status(error.status)(str(error))
    return next(own for kind, own in LANGCHAINS_ERRORS.items() if isinstance(error, kind))(str(error))


def _of_status(status: int | None) -> type[exceptions.ModelError]:
    if status is None:
        return exceptions.ModelConnectionError
    return OF_STATUS.get(status, exceptions.ModelAPIError if status >= 500 else exceptions.ModelInvalidRequestError)


@contextmanager
def translated() -> Iterator[None]:
    """Errors of the engine inside the block are LangChain's own; the original is their cause."""
    try:
        yield
    except (errors.EFTError, TimeoutError) as error:
        raise langchains_error(error) from error
