"""Connections: what uvicorn does with one, and the times within which a client must do its part.

    head    a request's head: after the connection was made, or after the head's first byte    head_timeout_s
    body    the rest of the request, after its head                                            receive_timeout_s
    answer  something is there to be read and the client takes nothing of it                   send_timeout_s
    idle    no request after an answer (uvicorn's own)                                         keep_alive_timeout_s

Whoever is late is let go, and what is computed for it ends. A connection whose request is being answered is in nobody's way; of all
others the one that has waited longest makes room for a new one when there are `max_connections`.

What a client sends is looked at in small slices, for a few milliseconds a turn of the event loop, so that one client's flood of
tiny pieces lets others through in between.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from eft_integrations.server.entrance.connection_settings import ConnectionSettings
from eft_integrations.server.errors import INVALID, SERVER, Kind, make_fields

SLICE_BYTES, TURN_S = 4 * 1024, 0.005
"""What a client sends is given to the parser in slices of this size, so many as fit into this time of one turn of the event loop. A
slice takes microseconds, or some milliseconds where it is made of chunks of one byte."""

MOST_FRAMING_BYTES = 128 * 1024
"""Of the bytes of one body in chunks, so many may be lengths and line ends: 20,000 chunks."""

MOST_UNWANTED_BYTES, COST_OF_CHUNKS = 64 * 2**20, 512
"""Of a body whose answer has been sent already, so much is thrown away before the connection is cut; of one in chunks, which cost
more than bytes, 128 KiB.
"""

SEND_BUFFER_BYTES = 128 * 1024
"""What the system keeps of an answer that a client does not read. Its own choice, several MB, would hide that for minutes."""

AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: closing throws away what was not sent."""

LATE_S = 5.0
"""A late body is answered (408) by the guard; the connection is cut so much later where that did not end it."""


class ListeningConfig(uvicorn.Config):
    """uvicorn's configuration, with what all connections of a server share."""

    def __init__(self, *args: Any, connections: ConnectionSettings, **options: Any) -> None:
        super().__init__(*args, **options)
        self.connections = connections
        self.waiting: dict[Connection, None] = {}
        """Connections that are not being answered; who has waited longest stands first."""


class Connection(H11Protocol):
    """One client's connection."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(config, ListeningConfig), "made by `running`, which says how long clients may take"
        self._limits = config.connections
        self._waiting = config.waiting
        self._owing: tuple[str, object] | None = None
        self._owing_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0
        self._received = bytearray()
        self._framing_bytes = 0
        self._unwanted_bytes = 0

    # ---- what asyncio calls ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1, low=0)  # so that whatever a client does not read is noticed
        self._set_option(socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if len(self.connections) > self._limits.max_connections:
            longest = next(iter(self._waiting), None)
            if longest is None:
                self._refuse(
                    "all connections of this server are being answered; come back soon", 503, "too_many_connections"
                )
                return
            longest.let_go()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.transport.is_closing():
            return
        others_wait = bool(self._received)
        self._received += data
        if others_wait:
            self.transport.pause_reading()
        elif self._look_through():
            self.transport.pause_reading()
            self.loop.call_soon(self._look_further)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        super().pause_writing()
        self._watch_unread()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        super().resume_writing()
        self._unread_timer = _stop(self._unread_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._owing_timer = _stop(self._owing_timer)
        self._unread_timer = _stop(self._unread_timer)
        self._waiting.pop(self, None)
        self._received.clear()
        super().connection_lost(exc)

    # ---- what uvicorn calls ------------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """An answer was given to the transport."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._watch_unread()
        if not self.transport.is_closing():
            self._watch()

    def send_400_response(self, msg: str) -> None:
        """What was sent is not HTTP, or its head is too long."""
        self._refuse("this is no HTTP/1.1 request, or its head is larger than 16 KiB", 400, "invalid_http")

    def shutdown(self) -> None:
        """The server ends: a connection without a request is closed, others when they are answered."""
        if self.conn.our_state is h11.ERROR:
            self.transport.abort()
        else:
            super().shutdown()

    def _unsupported_upgrade_warning(self) -> None:
        """A client asks for HTTP/2 or WebSocket by the way; it is answered in HTTP/1.1, which is no news."""

    # ---- what a client owes ------------------------------------------------------------------------------------------------

    def let_go(self) -> None:
        """End the connection now, whatever it was doing."""
        self._waiting.pop(self, None)
        self._received.clear()
        self._set_option(
            socket.SO_LINGER, AT_ONCE
        )  # else the system would keep what was not read, and go on offering it
        self.transport.abort()

    def _set_option(self, option: int, value: int | bytes) -> None:
        connection = self.transport.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0:
            connection.setsockopt(socket.SOL_SOCKET, option, value)

    def _look_further(self) -> None:
        if self._look_through():
            self.loop.call_soon(self._look_further)
        elif not self.flow.read_paused:
            self.transport.resume_reading()

    def _look_through(self) -> bool:
        """Look at what has come, for so long as one turn may take; whether there is more."""
        end = self.loop.time() + TURN_S
        while self._received and not self.transport.is_closing():
            self._look_at(bytes(self._received[:SLICE_BYTES]))
            del self._received[:SLICE_BYTES]
            if self.loop.time() > end:
                break
        if self.transport.is_closing():
            self._received.clear()
        return bool(self._received)

    def _look_at(self, data: bytes) -> None:
        """Give a slice to the parser, and see what has become of the request."""
        cycle = self.cycle
        is_body = self.conn.their_state is h11.SEND_BODY
        before = len(cycle.body) if is_body else 0
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.cycle is not cycle:
            self._framing_bytes = self._unwanted_bytes = 0
        elif is_body and self.conn.our_state is h11.DONE:
            self._unwanted_bytes += len(data) * (COST_OF_CHUNKS if self._in_chunks else 1)
        elif is_body:
            self._framing_bytes += len(data) - (len(cycle.body) - before)
        if self._unwanted_bytes > MOST_UNWANTED_BYTES:
            self.let_go()
        elif self._framing_bytes > MOST_FRAMING_BYTES:
            self._refuse("the body comes in too many small chunks; send larger ones", 400, "chunks_too_small")
        else:
            self._watch()

    @property
    def _in_chunks(self) -> bool:
        return any(name == b"transfer-encoding" for name, _ in self.headers)

    def _owed(self) -> tuple[str, object] | None:
        """What the client has to send: the rest of a head or of a body, of which request."""
        if self.conn.their_state is h11.SEND_BODY:
            return "body", self.cycle
        if self.conn.their_state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            return "head", self.cycle
        return None

    def _watch(self) -> None:
        """Start a clock for what the client owes now, unless it runs already."""
        owed = self._owed()
        if self.cycle is not None and not self.cycle.response_complete and owed is None:
            self._waiting.pop(self, None)  # it is being answered
        else:
            self._waiting.setdefault(self)
        if owed == self._owing:
            return
        self._owing, self._owing_timer = owed, _stop(self._owing_timer)
        if owed is not None:
            in_s = self._limits.head_timeout_s if owed[0] == "head" else self._limits.receive_timeout_s + LATE_S
            self._owing_timer = self.loop.call_later(in_s, self._late)

    def _late(self) -> None:
        if self._owing is not None and self._owing[0] == "head" and self.conn.our_state is h11.IDLE:
            text = f"no whole head of a request within {self._limits.head_timeout_s:g} s"
            self._refuse(text, 408, "head_timeout")
        else:
            self.let_go()

    # ---- what a client does not read ---------------------------------------------------------------------------------------

    def _watch_unread(self) -> None:
        if self._unread_timer is None:
            self._unread_bytes = self.transport.get_write_buffer_size()
            self._unread_timer = self.loop.call_later(self._limits.send_timeout_s, self._look_at_unread)

    def _look_at_unread(self) -> None:
        self._unread_timer = None
        num_bytes = self.transport.get_write_buffer_size()
        if num_bytes and num_bytes >= self._unread_bytes:
            self.let_go()
        elif num_bytes:
            self._watch_unread()

    # ---- refusals ----------------------------------------------------------------------------------------------------------

    def _refuse(self, message: str, status: int, code: str) -> None:
        """Say why where that can still be said, and end the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.let_go()
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what its request works on has nobody to tell
            self.cycle.message_event.set()
        kind = Kind(status, INVALID if status < 500 else SERVER, code)
        body = json.dumps({"error": make_fields(message, kind)}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        events = (
            h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._watch_unread()


def _stop(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """No timer, in place of this one."""
    if timer is not None:
        timer.cancel()
    return None
