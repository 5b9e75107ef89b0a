"""What stands in front of every request: the API key, the size of bodies; and how long a refused client should wait."""

from __future__ import annotations

import asyncio
import math

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eft_integrations.server.callers import ANYBODY, Caller, KeyRing
from eft_integrations.server.errors import INVALID, Kind, error_response

OPEN_PATHS = frozenset({"/health"})
"""What answers without a key."""

DRAINED_BYTES, DRAIN_S = 64 * 2**20, 10.0
"""Of a body that is too large, so much is read and thrown away, so that the client comes to read the refusal."""


class Guard:
    """ASGI middleware that finds out who asks, and refuses requests without a key (401) and bodies that are too large (413), while
    they are read. A key is sent as `Authorization: Bearer <key>` or as `x-api-key`.
    """

    def __init__(self, app: ASGIApp, *, ring: KeyRing, max_body_bytes: int) -> None:
        self._app = app
        self._ring = ring
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        caller = ANYBODY if not len(self._ring) or scope["path"] in OPEN_PATHS else self._holder(headers)
        if caller is None:
            refusal = error_response(
                "a known API key is needed: Authorization: Bearer <key>, or x-api-key: <key>",
                Kind(401, INVALID, "invalid_api_key"),
            )
            await refusal(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        if self._announced(headers) > self._max_body_bytes:
            await _drain(receive)
            await error_response(*self._too_large())(scope, receive, send)
            return
        await self._app(scope, self._counted(receive), send)

    def _holder(self, headers: Headers) -> Caller | None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return self._ring.holder(given)

    def _announced(self, headers: Headers) -> int:
        length = headers.get("content-length", "0")
        return int(length) if length.isdecimal() else 0

    def _too_large(self) -> tuple[str, Kind]:
        return f"the body is larger than {self._max_body_bytes} bytes", Kind(413, INVALID, "body_too_large")

    def _counted(self, receive: Receive) -> Receive:
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                await _drain(receive)
                raise HTTPException(413, self._too_large()[0])
            return message

        return counted


async def _drain(receive: Receive) -> None:
    num_bytes = 0
    try:
        async with asyncio.timeout(DRAIN_S):
            while num_bytes < DRAINED_BYTES:
                message = await receive()
                num_bytes += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


class Pace:
    """How long requests take of late, to tell a refused client when to come back.

    >>> pace = Pace(max_num_seqs=2)
    >>> pace.note(3.0)
    >>> pace.retry_after_s(num_queued=4)
    6
    """

    def __init__(self, *, max_num_seqs: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._mean_s = 1.0
        self._num_noted = 0

    def note(self, total_s: float) -> None:
        """A request took so long; later ones count more."""
        self._num_noted += 1
        self._mean_s += (total_s - self._mean_s) * max(0.1, 1 / self._num_noted)

    def retry_after_s(self, num_queued: int) -> int:
        """Seconds until what waits now will probably have been answered; from 1 to 60."""
        return min(60, max(1, math.ceil(self._mean_s * num_queued / self._max_num_seqs)))
