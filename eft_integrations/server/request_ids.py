"""The id of a request: the client's own where it sends one, in the logs, in the engine and in the answer."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"
ALLOWED = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
"""What a client's own id may be: nothing that could end a line of a log."""


class RequestIds:
    """ASGI middleware that gives every request an id (`scope["state"]["request_id"]`) and every answer its header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if ALLOWED.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (HEADER.encode(), request_id.encode())]
            await send(message)

        await self._app(scope, receive, named)
