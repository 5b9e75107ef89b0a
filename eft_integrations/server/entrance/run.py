"""The application on its sockets, under uvicorn, until a signal ends it."""

from __future__ import annotations

import contextlib
import gc
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from eft_integrations.server.entrance.connections import Connection, ListeningConfig
from eft_integrations.server.entrance.listening import BACKLOG, TAKEN_AT_ONCE, Listening
from eft_integrations.server.settings import ServerSettings

logger = logging.getLogger("uvicorn.error")

FURTHER_FILES = 512
"""Open files besides connections: models, logs, what the libraries hold."""


class Server(uvicorn.Server):
    """uvicorn's server, which says where it is reached when it is, and tells `on_exit` of the signal that ends it."""

    def __init__(self, config: uvicorn.Config, address: str, on_exit: Callable[[], None]) -> None:
        super().__init__(config)
        self._address = address
        self._on_exit = on_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal wants the server to end."""
        self._on_exit()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        for held in sockets or ():  # connections of this process that are over are in nobody's way at the next start
            if held.family != getattr(socket, "AF_UNIX", None):
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await super().startup(sockets=sockets)
        for held in sockets or ():
            held.listen(BACKLOG)
        logger.info("Uvicorn running on %s (Press CTRL+C to quit)", self._address)


def run(
    app: ASGIApp,
    settings: ServerSettings,
    held: Listening,
    tls: ssl.SSLContext | None,
    *,
    on_exit: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT, of which `on_exit` is told; then no new connection is taken, and answers may take
    `drain_timeout_s` longer.
    """
    allow_open_files(settings.connections.max_connections + FURTHER_FILES)
    server = Server(server_config(app, settings, tls), held.address, on_exit)
    keep_for_good()
    with contextlib.suppress(KeyboardInterrupt), _outliving_sigterm():
        server.run(sockets=held.sockets)
    if not server.started:
        sys.exit(1)


def keep_for_good() -> None:
    """Let Python look no more for garbage among what is there now: models and libraries, a million objects, stay to the end, and
    looking through all of them would stop every request for most of a second.
    """
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def _outliving_sigterm() -> Iterator[None]:
    """Let the process go on when uvicorn is done and raises its last signal once more: engines are still to be closed."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def server_config(app: ASGIApp, settings: ServerSettings, tls: ssl.SSLContext | None) -> ListeningConfig:
    """How uvicorn is told to run the application."""
    config = ListeningConfig(
        app,
        connections=settings.connections,
        http=Connection,
        ws="none",
        lifespan="on",
        interface="asgi3",
        backlog=TAKEN_AT_ONCE,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.connections.keep_alive_timeout_s,
        timeout_graceful_shutdown=settings.drain_timeout_s,
    )
    config.load()
    config.ssl = tls
    return config


def allow_open_files(count: int) -> None:
    """Raise the soft limit of open files of this process, so far as the hard one allows; a warning where it stays below."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    most = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < count:
        logger.warning(
            "this process may open %d files, and max_connections needs %d: raise the limit (ulimit -n), or set fewer connections",
            most,
            count,
        )
