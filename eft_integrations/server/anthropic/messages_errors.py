"""Errors as Anthropic writes them: on its routes, and wherever a client says that it is Anthropic's (`anthropic-version`).

One layer around everything that may refuse a request rewrites OpenAI's form, so that no place that refuses one has to know both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eft_integrations.json_types import Json, JsonObject
from eft_integrations.server.errors import INVALID, PERMISSION, RATE

PATH = "/v1/messages"
VERSION = "anthropic-version"
BY_STATUS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
BY_CODE = {
    "model_not_found": "not_found_error",
    "out_of_memory": "overloaded_error",
    "shutting_down": "overloaded_error",
    "engine_lost": "overloaded_error",
}
BY_TYPE = {
    INVALID: "invalid_request_error",
    PERMISSION: "permission_error",
    RATE: "rate_limit_error",
    "timeout_error": "timeout_error",
}


def error_form(fields: Mapping[str, Json], *, status: int | None = None, request_id: str | None = None) -> JsonObject:
    """An error, from the fields of OpenAI's form. In the middle of a stream there is no status.

    >>> error_form({"message": "there is none", "type": "invalid_request_error", "code": "model_not_found"})["error"]["type"]
    'not_found_error'
    """
    found = BY_STATUS.get(status or 0) or BY_CODE.get(str(fields.get("code"))) or BY_TYPE.get(str(fields.get("type")))
    form: JsonObject = {"type": "error", "error": {**fields, "type": found or "api_error"}}
    return form if request_id is None else {**form, "request_id": request_id}


def speaks_anthropic(scope: Scope) -> bool:
    """Whether errors of a request are told in Anthropic's form."""
    path = scope["path"]
    return path == PATH or path.startswith(f"{PATH}/") or VERSION in Headers(scope=scope)


class MessagesErrors:
    """ASGI middleware that rewrites errors, and tells the request's id under Anthropic's name, `request-id`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or not speaks_anthropic(scope):
            await self._app(scope, receive, send)
            return
        held: Message | None = None
        body = b""

        async def rewritten(message: Message) -> None:
            nonlocal held, body
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["request-id"] = headers.get("x-request-id", "")
                if message["status"] >= 400 and headers.get("content-type") == "application/json":
                    held = message
                    return
            elif held is not None:
                body += message.get("body", b"")
                if message.get("more_body", False):
                    return
                headers = MutableHeaders(scope=held)
                body = _rewritten(body, held["status"], headers["request-id"])
                headers["content-length"] = str(len(body))
                await send(held)
                held = None
                message = {**message, "body": body if scope["method"] != "HEAD" else b""}
            await send(message)

        await self._app(scope, receive, rewritten)


def _rewritten(body: bytes, status: int, request_id: str) -> bytes:
    value = json.loads(body) if body else {}
    fields = value.get("error")
    if not isinstance(fields, dict):
        return body
    return json.dumps(error_form(fields, status=status, request_id=request_id), ensure_ascii=False).encode()
