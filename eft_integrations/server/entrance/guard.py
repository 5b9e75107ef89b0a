"""What stands in front of every request: who may ask at all, the size of bodies, and how long a client may take to send one."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Generator

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eft_integrations.server.callers.callers import ANYBODY, Caller, KeyRing
from eft_integrations.server.entrance.connection_settings import ConnectionSettings
from eft_integrations.server.entrance.held_bodies import HeldBodies
from eft_integrations.server.errors import INVALID, RATE, ApiError, Kind, error_response

OPEN_PATHS = frozenset({"/health", "/ready"})
"""What always answers without a key."""

DRAINED_BYTES, DRAIN_S = 64 * 2**20, 5.0
"""Of a body that nobody wants, so much is read and thrown away, so that the client comes to read the refusal."""


class BodyTimeoutError(ApiError):
    """A client did not send its body in time; what it sends later is not looked at."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"no whole body within {timeout_s:g} s; send it faster, or in several calls",
            Kind(408, INVALID, "receive_timeout"),
            headers={"Connection": "close"},
        )


class CallerCrowdError(ApiError):
    """A caller has so many requests on the way that others would find no connection (429)."""

    def __init__(self, most: int) -> None:
        super().__init__(
            f"this key has {most} requests on the way, which is all that one may have; wait for answers",
            Kind(429, RATE, "too_many_requests"),
            headers={"Retry-After": "1"},
        )


class BodiesFullError(ApiError):
    """Too many large bodies are in memory (429)."""

    def __init__(self) -> None:
        super().__init__(
            "the server holds as many large bodies as it may; come back soon, or send a smaller one",
            Kind(429, RATE, "too_many_bodies"),
            headers={"Retry-After": "5", "Connection": "close"},
        )


class Guard:
    """ASGI middleware that finds out who asks, and refuses requests without a key (401), bodies that are too large (413) and bodies
    that do not come (408), while they are read. A key is sent as `Authorization: Bearer <key>` or as `x-api-key`.

    Args:
        open_paths: what answers without a key.
        connections: how long a body may take, how much of bodies is held at once, and of how many connections one caller of
            several may have half.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        ring: KeyRing,
        max_body_bytes: int,
        connections: ConnectionSettings | None = None,
        open_paths: frozenset[str] = OPEN_PATHS,
    ) -> None:
        limits = connections or ConnectionSettings()
        self._app = app
        self._ring = ring
        self._max_body_bytes = max_body_bytes
        self._open_paths = open_paths
        self._receive_timeout_s = limits.receive_timeout_s
        self._bodies = HeldBodies(limits.max_held_body_bytes)
        self._most_requests = max(1, limits.max_connections // 2)
        self._on_the_way: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._serve(scope, receive, send)
        except (CallerCrowdError, BodiesFullError) as error:
            await error_response(str(error), error.kind, error.headers)(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        caller = scope.get("state", {}).get("caller")  # of a line of a batch, which did not come over the wire
        if caller is None:
            caller = ANYBODY if not len(self._ring) or scope["path"] in self._open_paths else self._holder(headers)
        if caller is None:
            is_large = self._announced(headers) > self._max_body_bytes
            if _has_body(headers) and not is_large:
                await _drain(receive)
            refusal = error_response(
                "a known API key is needed: Authorization: Bearer <key>, or x-api-key: <key>",
                Kind(401, INVALID, "invalid_api_key"),
                {"Connection": "close"} if is_large else {},
            )
            await refusal(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        num_bytes = self._announced(headers)
        if num_bytes > self._max_body_bytes:
            await _drain(receive)
            await error_response(*self._too_large())(scope, receive, send)
            return
        async with contextlib.AsyncExitStack() as held:
            held.enter_context(self._one_more(caller))
            try:
                async with asyncio.timeout(self._receive_timeout_s):
                    await held.enter_async_context(self._bodies.room(num_bytes))
            except TimeoutError:
                raise BodiesFullError from None
            await self._app(scope, self._bounded(receive), send)

    @contextlib.contextmanager
    def _one_more(self, caller: Caller) -> Generator[None]:
        if len(self._ring) > 1 and self._on_the_way[caller.name] >= self._most_requests:
            raise CallerCrowdError(self._most_requests)
        self._on_the_way[caller.name] += 1
        try:
            yield
        finally:
            self._on_the_way[caller.name] -= 1

    def _holder(self, headers: Headers) -> Caller | None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return self._ring.holder(given)

    def _announced(self, headers: Headers) -> int:
        """Most bytes that a body may have."""
        if "transfer-encoding" in headers:
            return self._max_body_bytes
        length = headers.get("content-length", "0")
        return int(length) if length.isdecimal() else 0

    def _too_large(self) -> tuple[str, Kind]:
        return f"the body is larger than {self._max_body_bytes} bytes", Kind(413, INVALID, "body_too_large")

    def _bounded(self, receive: Receive) -> Receive:
        num_bytes = 0
        is_whole = False
        loop = asyncio.get_running_loop()
        end = loop.time() + self._receive_timeout_s

        async def bounded() -> Message:
            nonlocal num_bytes, is_whole
            try:
                async with asyncio.timeout_at(None if is_whole else end):
                    message = await receive()
            except TimeoutError:
                raise BodyTimeoutError(self._receive_timeout_s) from None
            is_whole = not message.get("more_body", False)
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                await _drain(receive)
                raise HTTPException(413, self._too_large()[0])
            return message

        return bounded


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


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
