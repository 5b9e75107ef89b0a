"""The outermost layer: every request gets an id and a record, is work for others, whose time is bounded, and is logged, counted and
traced once, when it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eft_engine.overdue import for_others
from eft_integrations.server.errors import error_fields, error_response, kind_of
from eft_integrations.server.seen.access_log import log_end, log_failure
from eft_integrations.server.seen.metrics import ServerMetrics
from eft_integrations.server.seen.outcomes import PROBES, Outcome
from eft_integrations.server.seen.records import CURRENT, Record
from eft_integrations.server.seen.request_ids import HEADER, request_id_of
from eft_integrations.server.seen.tracing import Tracing

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
"""Other methods are words of the client's, which logs and spans do not repeat."""


class Watched:
    """ASGI middleware around all others.

    Args:
        access_log: whether there is a line for every request; failures are always logged.
        tracing: None: nothing is traced.
        is_ending: whether the server stops; what is cut otherwise was cut by whoever asked (a batch that is cancelled).
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: ServerMetrics,
        access_log: bool,
        tracing: Tracing | None,
        is_ending: Callable[[], bool],
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log
        self._tracing = tracing
        self._is_ending = is_ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = Record(request_id_of(headers), method if (method := scope["method"]) in METHODS else "OTHER")
        scope.setdefault("state", {})["request_id"] = record.request_id
        span = None
        if self._tracing is not None and scope["path"] not in PROBES:
            span = self._tracing.begin(record, headers)
        self._metrics.begin()
        token = CURRENT.set(record)
        try:
            with for_others():
                await self._serve(record, scope, receive, send)
        except asyncio.CancelledError:
            record.is_stopped = self._is_ending()
            raise
        finally:
            CURRENT.reset(token)
            record.route = _route_of(scope)
            caller = scope["state"].get("caller")
            record.caller = None if caller is None else caller.name
            outcome = Outcome.of(record)
            log_failure(record)
            self._metrics.end(record, outcome)
            if self._access_log and not (record.route in PROBES and outcome.status == 200):
                log_end(record, outcome)
            if self._tracing is not None and span is not None:
                self._tracing.end(span, record, outcome)

    async def _serve(self, record: Record, scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": [*message["headers"], (HEADER.encode(), record.request_id.encode())]}
            elif message["type"] == "http.response.body":
                record.num_bytes += len(message.get("body", b""))
                record.is_whole = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:  # nobody foresaw it: it is logged when the request ends
            record.fail(error)
            if record.status == 0:
                await error_response(str(error_fields(error)["message"]), kind_of(error))(scope, receive, watched)


def _route_of(scope: Scope) -> str:
    """The path of the route that a request was for, also where it was refused before it got there; `other`: there is none."""
    if (route := getattr(scope.get("route"), "path", None)) is not None:
        return str(route)
    return scope["path"] if scope["path"] in scope["app"].state.paths else "other"
