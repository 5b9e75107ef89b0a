"""How paths and methods are taken: a slash too many at the end of a path is none, and what can be got can be asked for by HEAD."""

from __future__ import annotations

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Paths:
    """ASGI middleware in front of the routes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if len(scope["path"]) > 1:
            scope["path"] = scope["path"].rstrip("/") or "/"
        if scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        asked = {**scope, "method": "GET"}
        await self._app(asked, receive, without_body)
        if "route" in asked:  # who stands in front wants to know it
            scope["route"] = asked["route"]


def methods_of(request: Request) -> str:
    """What the path of a request can be asked with, as the header `Allow` has it.

    A framework looks at the first route of a path alone; others may have further methods.
    """
    found: set[str] = set()
    for route in request.app.state.routes:
        if isinstance(route, Route | APIRoute) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return ", ".join(sorted(found | ({"HEAD"} if "GET" in found else set())))
