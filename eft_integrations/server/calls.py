"""One call of a client: who asks, and its body, which is read, counted and checked off the event loop before anybody works on it.

The body is JSON whatever its `Content-Type` says. What it may hold is bounded (`bounds.BoundSettings`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from eft_integrations.server.bounds import BoundSettings
from eft_integrations.server.callers import ANYBODY, Caller
from eft_integrations.server.errors import INVALID, ApiError, Kind
from eft_integrations.weights import HEADER

BodyT = TypeVar("BodyT", bound=BaseModel)
ReadT = TypeVar("ReadT", bound=BaseModel, covariant=True)


@dataclass(frozen=True)
class Call(Generic[ReadT]):
    """A call: its body, and what came around it."""

    body: ReadT
    request: Request

    @property
    def caller(self) -> Caller:
        """Who asks."""
        return caller_of(self.request)

    @property
    def request_id(self) -> str:
        """The id under which logs, traces and the answer speak of this call."""
        return request_id_of(self.request)

    @property
    def weights_header(self) -> str | None:
        """The header that carries weights."""
        return self.request.headers.get(HEADER)


def caller_of(request: Request) -> Caller:
    """Who asks, as the guard found out."""
    return getattr(request.state, "caller", ANYBODY)


def request_id_of(request: Request) -> str:
    """The id of a request."""
    return getattr(request.state, "request_id", "")


def reads(model: type[BodyT], bounds: BoundSettings) -> Callable[[Request], Awaitable[Call[BodyT]]]:
    """A dependency of FastAPI that reads a body of this kind.

    Raises, when it is called:
        ApiError: it is not JSON, or holds more than the bounds allow.
        RequestValidationError: a field is not what the model says.
    """

    async def read(request: Request) -> Call[BodyT]:
        data = await request.body()
        return Call(await asyncio.to_thread(_parsed, data, model, bounds), request)

    return read


def _parsed(data: bytes, model: type[BodyT], bounds: BoundSettings) -> BodyT:
    if not data.strip():
        raise ApiError("the body is empty; send a JSON object", Kind(400, INVALID, "invalid_json"))
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not JSON: {_reason(error)}", Kind(400, INVALID, "invalid_json")) from None
    if not isinstance(value, dict):
        raise ApiError(
            f"the body must be a JSON object, got {type(value).__name__}", Kind(400, INVALID, "invalid_value")
        )
    check_json(value, bounds)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise RequestValidationError(
            [{**finding, "loc": ("body", *finding["loc"])} for finding in error.errors()]
        ) from None


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def check_json(value: Any, bounds: BoundSettings) -> None:
    """One walk over a body: how many values, how deep, and text that is Unicode.

    Raises:
        ApiError: it holds more than the bounds allow, or half of a surrogate pair, which no tokenizer can read.
    """
    level: list[Any] = [value]
    depth = num_values = 0
    while level:
        depth += 1
        num_values += len(level)
        if depth > bounds.json_depth:
            raise ApiError(f"the body is nested deeper than {bounds.json_depth} levels", Kind(400, INVALID, "too_deep"))
        if num_values > bounds.json_values:
            raise ApiError(
                f"the body holds more than {bounds.json_values} values; send them in several calls",
                Kind(400, INVALID, "too_many_values"),
            )
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, dict):
                for name in item:
                    _check_text(name)
                below += item.values()
            elif isinstance(item, list):
                below += item
        level = below


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ApiError(f"text that is not Unicode: {error.reason}", Kind(400, INVALID, "invalid_value")) from None
