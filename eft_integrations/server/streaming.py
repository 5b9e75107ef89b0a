"""Events to the wire: server-sent events, several answers in one stream, clients that leave, and the time limit.

A generation ends when its iterator is closed. So that it always is, answers are awaited and sent in a task that is cancelled when
the client's connection closes or the time is up.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from eft_integrations.json_types import Json
from eft_integrations.server.errors import ClientGoneError, RequestTimeoutError, error_fields
from eft_integrations.server.seen.records import current

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


def _error_event(fields: Mapping[str, Json]) -> Event:
    return {"error": fields}


@dataclass(frozen=True)
class StreamForm:
    """How one API writes what every stream has.

    Attributes:
        ping: sent while there is nothing to send, so that nothing between server and client takes the connection for dead; clients
            skip a comment.
        failure: the last event of a stream that failed, made of the fields of its error.
    """

    ping: bytes = b": ping\n\n"
    failure: Callable[[Mapping[str, Json]], Event] = _error_event


async def stream_response(
    events: AsyncGenerator[Event],
    request: Request,
    limit: TimeLimit,
    *,
    form: StreamForm | None = None,
    ping_interval_s: float | None = None,
) -> EventStream:
    """The response that sends events. What fails before the first event is raised, so that it gets a status of its own, unless a
    ping had to be sent before: then the status is out.
    """
    first = asyncio.ensure_future(_next(events))
    try:
        await while_connected(_come(first, ping_interval_s), request.receive, limit)
        if first.done():
            first.result()
    except BaseException:
        await _leave(first, events)
        raise
    return EventStream(first, events, limit, form=form or StreamForm(), ping_interval_s=ping_interval_s)


async def _next(events: AsyncIterator[Event]) -> Event:
    return await anext(events)


async def _come(first: asyncio.Future[Event], timeout_s: float | None) -> None:
    await asyncio.wait({first}, timeout=timeout_s)


async def _leave(first: asyncio.Future[Event], events: AsyncGenerator[Event]) -> None:
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await events.aclose()


class EventStream(Response):
    """Sends events as they come, and pings while none come.

    Args:
        first: the first event, or that it is waited for.
        events: those behind it.
        limit: the time that all of it may take.
        form: of pings and failures.
        ping_interval_s: a ping is sent when nothing was sent for so long; None: never.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: asyncio.Future[Event],
        events: AsyncGenerator[Event],
        limit: TimeLimit,
        *,
        form: StreamForm,
        ping_interval_s: float | None,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._events = events
        self._limit = limit
        self._form = form
        self._ping_interval_s = ping_interval_s
        self._last_sent = asyncio.get_running_loop().time() - (0.0 if first.done() else ping_interval_s or 0.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI. Errors that come later than the status are sent as a last event."""
        current().is_stream = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pinging = asyncio.ensure_future(self._ping(send))
        try:
            await while_connected(self._send(send), receive, self._limit)
        except ClientGoneError:
            return
        except Exception as error:
            current().fail(error)
            await _leave(self._first, self._events)  # the slot is free before anybody reads that
            await _write(send, encode(self._form.failure(error_fields(error))))
        finally:
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)
            await _leave(self._first, self._events)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send) -> None:
        event = await self._first
        loop = asyncio.get_running_loop()
        self._last_sent = loop.time()
        await _write(send, encode(event))
        async for event in self._events:
            self._last_sent = loop.time()
            await _write(send, encode(event))

    async def _ping(self, send: Send) -> None:
        """An event is written at once, so that a ping comes before or behind it."""
        if self._ping_interval_s is None:
            return
        loop = asyncio.get_running_loop()
        while True:
            wait_s = self._last_sent + self._ping_interval_s - loop.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
                continue
            self._last_sent = loop.time()
            await _write(send, self._form.ping)


async def _write(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


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
