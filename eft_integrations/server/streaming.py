"""Events to the wire: server-sent events, several answers in one stream, clients that leave, and the time limit.

A generation ends when its iterator is closed. So that it always is, answers are awaited and sent in a task that is cancelled when
the client's connection closes or the time is up.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from typing import TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from eft_integrations.json_types import Json
from eft_integrations.server.errors import ClientGoneError, RequestTimeoutError, error_fields

T = TypeVar("T")
Event = Mapping[str, Json] | str
"""JSON, or a text such as [DONE]; JSON with a `type` of its own (the responses API) is sent under that event name."""


class TimeLimit:
    """The time that one request may take, from now on."""

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self._end = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s

    @property
    def remaining_s(self) -> float | None:
        """Seconds left."""
        return None if self._end is None else max(0.0, self._end - asyncio.get_running_loop().time())


async def while_connected(work: Coroutine[object, None, T], receive: Receive, limit: TimeLimit) -> T:
    """The work's result, unless the client leaves or the time is up before; then the work is cancelled.

    Raises:
        ClientGoneError: the client closed its connection.
        RequestTimeoutError: the time is up.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, timeout=limit.remaining_s, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if watching.done():
            raise ClientGoneError
        assert limit.timeout_s is not None, "without a limit, one of the two is done"
        raise RequestTimeoutError(limit.timeout_s)
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def stream_response(events: AsyncGenerator[Event], request: Request, limit: TimeLimit) -> EventStream:
    """The response that sends events. What fails before the first event is raised, so that it gets a status of its own."""
    try:
        first = await while_connected(_next(events), request.receive, limit)
    except BaseException:
        await events.aclose()
        raise
    return EventStream(first, events, limit)


async def _next(events: AsyncIterator[Event]) -> Event:
    return await anext(events)


class EventStream(Response):
    """Sends events as they come."""

    media_type = "text/event-stream"

    def __init__(self, first: Event, events: AsyncGenerator[Event], limit: TimeLimit) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._events = events
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI. Errors that come later than the status are sent as a last event."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await while_connected(self._send(send), receive, self._limit)
        except ClientGoneError:
            return
        except Exception as error:
            await send({"type": "http.response.body", "body": encode(_failure(self._first, error)), "more_body": True})
        finally:
            await self._events.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.body", "body": encode(self._first), "more_body": True})
        async for event in self._events:
            await send({"type": "http.response.body", "body": encode(event), "more_body": True})


def _failure(first: Event, error: Exception) -> Event:
    fields = error_fields(error)
    if isinstance(first, Mapping) and "type" in first:  # the responses API has an event for it
        return {"type": "error", **fields, "code": fields["code"] or fields["type"]}
    return {"error": fields}


LINE_SEPARATORS = {ord(text): f"\\u{ord(text):04x}" for text in "\u0085\u2028\u2029"}
"""JSON may hold them as they are, but many clients split a stream's lines at them too; so they are escaped."""


def encode(event: Event) -> bytes:
    r"""One event as bytes.

    >>> encode({"choices": []}), encode("[DONE]"), encode({"type": "response.created"})
    (b'data: {"choices":[]}\n\n', b'data: [DONE]\n\n', b'event: response.created\ndata: {"type":"response.created"}\n\n')
    """
    if isinstance(event, str):
        return f"data: {event}\n\n".encode()
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":")).translate(LINE_SEPARATORS)
    data = f"data: {text}\n\n"
    return (f"event: {event['type']}\n{data}" if "type" in event else data).encode()


async def interleave(streams: Sequence[AsyncIterator[T]]) -> AsyncGenerator[tuple[int, T]]:
    """Items of several iterators as they come, each with the number of its iterator; closing it closes all of them."""
    items: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def pump(index: int, stream: AsyncIterator[T]) -> None:
        try:
            async with aclosing(stream):  # type: ignore[type-var]
                async for item in stream:
                    items.put_nowait((index, item))
            items.put_nowait(None)
        except Exception as error:
            items.put_nowait(error)

    tasks = [asyncio.ensure_future(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            match await items.get():
                case None:
                    running -= 1
                case Exception() as error:
                    raise error
                case item:
                    yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
