"""/v1/files and /v1/batches, as OpenAI has them."""

from __future__ import annotations

import asyncio
import email.parser
import email.policy
from typing import Annotated, Literal

import httpx
from fastapi import Request
from fastapi.responses import FileResponse, Response
from pydantic import Field
from starlette.types import ASGIApp, Receive, Scope, Send

from eft_integrations.json_types import JsonObject
from eft_integrations.server.bodies.body import Body
from eft_integrations.server.bodies.calls import Call, caller_of, unused_around
from eft_integrations.server.bodies.unused_fields import MAX_NAMED, TOLD, refused, unused
from eft_integrations.server.callers.callers import ANYBODY
from eft_integrations.server.errors import INVALID, ApiError, Kind, shortened
from eft_integrations.server.evaluation.batches import AskLine, Batches, Reply
from eft_integrations.server.evaluation.files import FileStore
from eft_integrations.server.routes import Routes
from eft_integrations.server.service import Service

ENDPOINTS = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/score"]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
MAX_LISTED = 100
FORM = ("file", "purpose")
"""Fields of an upload."""
UPLOAD = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [*FORM],
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "JSON Lines"},
                    "purpose": {"type": "string", "enum": ["batch"]},
                },
            }
        }
    },
}
"""An upload, as the description of the API has it."""


class BatchBody(Body):
    """POST /v1/batches."""

    input_file_id: str
    endpoint: ENDPOINTS
    completion_window: Literal["24h"] = "24h"
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None


class NoFields(Body):
    """What a route reads that needs none."""


def batches_of(service: Service) -> Batches | None:
    """The batches of a service; None: it has no folder for them."""
    settings = service.settings.batches
    if settings.folder is None:
        return None

    def is_busy() -> bool:
        return any(turns.num_waiting for turns in service.turns.values())

    num_at_once = min(settings.max_running, max(1, service.settings.engine.max_num_seqs // 4))
    return Batches(FileStore(settings.folder, settings), settings, num_at_once=num_at_once, is_busy=is_busy)


def batch_routes(service: Service, batches: Batches) -> Routes:
    """The routes of files and batches."""
    routes = Routes(tag="batches", bounds=service.settings.bounds)
    files, router = batches.files, routes.router

    @router.post("/v1/files", response_model=None, openapi_extra={"requestBody": UPLOAD})
    async def upload(request: Request) -> JsonObject:
        parts = await asyncio.to_thread(parts_of, request.headers.get("content-type", ""), await request.body())
        if "file" not in parts or "purpose" not in parts:
            raise _wrong("file", "send a form with file (JSON Lines) and purpose=batch")
        filename, data = parts["file"]
        purpose = parts["purpose"][1].decode(errors="replace")
        if purpose != "batch":
            raise _wrong("purpose", f"files are for batches: purpose=batch, got {shortened(purpose)!r}")
        further = {name: value.decode(errors="replace") for name, (_, value) in parts.items() if name not in FORM}
        for name, value in further.items():
            if (reason := refused({name: value}, ())) is not None:
                raise _wrong(name[:100], reason)
        names = [name[:100] for name in unused(further)][:MAX_NAMED]
        TOLD.tell("/v1/files", names)
        names += unused_around(Call(NoFields(), request))
        return _with_ignored(files.add(caller_of(request).name, data, filename=filename, purpose=purpose).form, names)

    @router.get("/v1/files", response_model=None)
    async def listed_files(request: Request, limit: int = MAX_LISTED, after: str | None = None) -> JsonObject:
        return _page([file.form for file in files.of(caller_of(request).name)], limit, after)

    @router.get("/v1/files/{file_id}", response_model=None)
    async def file(file_id: str, request: Request) -> JsonObject:
        return files.get(caller_of(request).name, file_id).form

    @router.get("/v1/files/{file_id}/content", response_model=None)
    async def content(file_id: str, request: Request) -> Response:
        found = files.get(caller_of(request).name, file_id)
        return FileResponse(files.path(found), media_type="application/jsonl", filename=found.filename)

    @router.delete("/v1/files/{file_id}", response_model=None)
    async def delete(file_id: str, request: Request) -> JsonObject:
        files.delete(files.get(caller_of(request).name, file_id))
        return {"id": file_id, "object": "file", "deleted": True}

    @routes.posts("/v1/batches", BatchBody)
    async def create(call: Call[BatchBody]) -> JsonObject:
        batches.ask = _asking(service, call.request.app)
        given = files.get(call.caller.name, call.body.input_file_id)
        batch = batches.create(call.caller.name, given, call.body.endpoint, call.body.metadata or {})
        return _with_ignored(batch.form, unused_around(call))

    @router.get("/v1/batches", response_model=None)
    async def listed(request: Request, limit: int = 20, after: str | None = None) -> JsonObject:
        return _page([batch.form for batch in batches.of(caller_of(request).name)], limit, after)

    @router.get("/v1/batches/{batch_id}", response_model=None)
    async def batch(batch_id: str, request: Request) -> JsonObject:
        return batches.get(caller_of(request).name, batch_id).form

    @routes.posts("/v1/batches/{batch_id}/cancel", NoFields, may_be_empty=True)
    async def cancel(call: Call[NoFields]) -> JsonObject:
        found = batches.get(call.caller.name, call.request.path_params["batch_id"])
        batches.cancel(found)
        return _with_ignored(found.form, unused_around(call))

    return routes


def _with_ignored(form: JsonObject, names: list[str]) -> JsonObject:
    return {**form, "eft": {"ignored": [*names]}} if names else form


def _page(forms: list[JsonObject], limit: int, after: str | None) -> JsonObject:
    ids = [form["id"] for form in forms]
    start = ids.index(after) + 1 if after in ids else 0
    stop = start + max(1, min(limit, MAX_LISTED))
    shown = forms[start:stop]
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return {"object": "list", "data": [*shown], "has_more": stop < len(forms), "first_id": first, "last_id": last}


def parts_of(content_type: str, body: bytes) -> dict[str, tuple[str, bytes]]:
    r"""The fields of a form, each with the name of its file (or none) and its bytes.

    >>> data = b'--x\r\nContent-Disposition: form-data; name="a"; filename="f"\r\n\r\nb\nc\r\n--x--\r\n'
    >>> parts_of("multipart/form-data; boundary=x", data)
    {'a': ('f', b'b\nc')}

    Raises:
        ApiError: it is no form.
    """
    if not content_type.lower().startswith("multipart/form-data"):
        raise _wrong("file", f"send a form (multipart/form-data), got {shortened(content_type) or 'no type'}")
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1", errors="replace")
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    found: dict[str, tuple[str, bytes]] = {}
    for part in message.iter_parts() if message.is_multipart() else ():
        name = part.get_param("name", header="content-disposition")
        data = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(data, bytes):
            found[name] = (part.get_filename() or "", data)
    return found


def _asking(service: Service, app: ASGIApp) -> AskLine:
    """Sends lines through the whole application; who asks is known already, so that no key is needed."""

    async def ask(path: str, body: bytes, owner: str) -> Reply:
        known = (
            {caller.name: caller for caller in service.ring.callers} if len(service.ring) else {ANYBODY.name: ANYBODY}
        )
        if owner not in known:
            raise ApiError("the key that sent the batch is known no more", Kind(401, INVALID, "invalid_api_key"))

        async def as_caller(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"] = {"caller": known[owner]}
            await app(scope, receive, send)

        transport = httpx.ASGITransport(as_caller, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
            response = await client.post(path, content=body)
        return Reply(response.status_code, response.headers.get("x-request-id", ""), response.json())

    return ask


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(message, Kind(400, INVALID, "invalid_value", param))
