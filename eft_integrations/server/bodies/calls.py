"""One call of a client: who asks, and its body, which is read, counted and checked off the event loop before anybody works on it.

The body is JSON whatever its `Content-Type` says. What it may hold is bounded (`bounds.BoundSettings`).
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from eft_engine.errors import InvalidOptionError, RequestError
from eft_engine.overdue import at_most
from eft_engine.preparing import prepared
from eft_integrations.server.bodies.bounds import BoundSettings
from eft_integrations.server.bodies.counting import check_counts
from eft_integrations.server.bodies.idle_fields import QUIET_IN_QUERY
from eft_integrations.server.bodies.levels import levels
from eft_integrations.server.bodies.unused_fields import MAX_NAMED, TOLD
from eft_integrations.server.callers.callers import ANYBODY, Caller
from eft_integrations.server.errors import INVALID, ApiError, Kind, shortened
from eft_integrations.server.seen.records import PROMPT_FIELD, current
from eft_integrations.weights import HEADER

BodyT = TypeVar("BodyT", bound=BaseModel)
ReadT = TypeVar("ReadT", bound=BaseModel, covariant=True)
Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")

MAX_SECONDS = 10.0
"""Most time of a thread that it may take to make requests of a body."""


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
        """The header that carries weights; one that comes several times is one list, as HTTP has it."""
        return ",".join(self.request.headers.getlist(HEADER)) or None


def caller_of(request: Request) -> Caller:
    """Who asks, as the guard found out."""
    return getattr(request.state, "caller", ANYBODY)


def request_id_of(request: Request) -> str:
    """The id of a request."""
    return getattr(request.state, "request_id", "")


def unused_around(call: Call[Any]) -> list[str]:
    """Names of what came around a body and is not used, and of what the body has; each is logged once.

    Raises:
        InvalidOptionError: a header of ours that there is not.
    """
    for name in call.request.headers:
        if name.startswith("x-eft-") and name != HEADER.lower():
            raise InvalidOptionError(f"there is no header {shortened(name)}; did you mean {HEADER}?", option=HEADER)
    query = dict.fromkeys(name for name in call.request.query_params if name not in QUIET_IN_QUERY)
    has_weights = "eft_reward_weights" in type(call.body).model_fields
    headers = [f"header.{HEADER}"] if call.weights_header is not None and not has_weights else []
    names = [
        *getattr(call.body, "ignored", ()),
        *headers,
        *(f"query.{shortened(name)}" for name in list(query)[:MAX_NAMED]),
    ]
    route = call.request.scope.get("route")
    TOLD.tell(str(getattr(route, "path", "")), names)
    return names


def reads(
    model: type[BodyT], bounds: BoundSettings, *, may_be_empty: bool = False
) -> Callable[[Request], Awaitable[Call[BodyT]]]:
    """A dependency of FastAPI that reads a body of this kind. `may_be_empty`: no body at all is one without fields.

    Raises, when it is called:
        ApiError: it is not JSON, or holds more than the bounds allow.
        RequestValidationError: a field is not what the model says.
    """

    async def read(request: Request) -> Call[BodyT]:
        data = await request.body()
        if may_be_empty and not data.strip():
            data = b"{}"
        body = await asyncio.to_thread(_parsed, data, model, bounds)
        current().prompt_field = getattr(body, "prompt_field", PROMPT_FIELD)
        return Call(body, request)

    return read


async def made_of(make: Callable[Arguments, Made], *args: Arguments.args, **keywords: Arguments.kwargs) -> Made:
    """Call what makes requests of a body: in a thread, for `MAX_SECONDS` of work at most.

    Raises:
        RequestError: they are over.
    """
    return await prepared(_within_time, functools.partial(make, *args, **keywords))


def _within_time(make: Callable[[], Made]) -> Made:
    with at_most(MAX_SECONDS, _took_too_long):
        return make()


def _took_too_long() -> RequestError:
    return RequestError(
        f"the body was not read within {MAX_SECONDS:g} s of work; make its messages, tools or schemas smaller"
    )


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
    check_counts(value, bounds)
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
    num_values = 0
    for depth, level in enumerate(levels(value), 1):
        num_values += len(level)
        if depth > bounds.json_depth:
            raise ApiError(f"the body is nested deeper than {bounds.json_depth} levels", Kind(400, INVALID, "too_deep"))
        if num_values > bounds.json_values:
            raise ApiError(
                f"the body holds more than {bounds.json_values} values; send them in several calls",
                Kind(400, INVALID, "too_many_values"),
            )
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, dict):
                for name in item:
                    _check_text(name)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ApiError(f"text that is not Unicode: {error.reason}", Kind(400, INVALID, "invalid_value")) from None
