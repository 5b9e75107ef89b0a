"""A server for tests: the real application under the real uvicorn, on a free port of loopback, in a thread."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import httpx
import uvicorn
from fastapi import FastAPI

from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.server.app import create_app
from eft_integrations.server.compositions import Composition
from eft_integrations.server.entrance.connections import Connection, ListeningConfig
from eft_integrations.server.settings import ServerSettings

Served = Mapping[str, ChatBackend] | Sequence[Composition]
"""Backends by name, or compositions."""


def make_app(served: Served, settings: ServerSettings | None = None) -> FastAPI:
    """The application."""
    if isinstance(served, Mapping):
        served = [Composition.of(name, backend) for name, backend in served.items()]
    return create_app(served, settings)


@contextlib.contextmanager
def running(served: Served, settings: ServerSettings | None = None, *, log_level: str = "warning") -> Iterator[str]:
    """Serve backends by name, or compositions; gives the base URL."""
    config = ListeningConfig(
        make_app(served, settings),
        connections=(settings or ServerSettings()).connections,
        http=Connection,
        ws="none",
        host="127.0.0.1",
        port=0,
        log_level=log_level,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


def in_process(served: Served, settings: ServerSettings | None = None) -> httpx.AsyncClient:
    """A client of the application without sockets, for tests of shapes."""
    transport = httpx.ASGITransport(make_app(served, settings), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


def events_of(text: str) -> list[str]:
    """The data of server-sent events."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
