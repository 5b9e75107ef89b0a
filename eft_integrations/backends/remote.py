"""A `ChatBackend` over HTTP: a trio that a server holds, behind the seam that all adapters talk to.

The server is one that `eft serve` or `eft serve --engine vllm` started. The two want to be asked in different ways; which one a
server wants it says itself, in `GET /v1/models`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Mapping

import httpx

from eft_engine import EngineStats, errors
from eft_engine.forbidding import refuse_if_forbidden
from eft_engine.weights import Weight
from eft_integrations.backends.connection import (
    Call,
    Connection,
    Dialect,
    EventReader,
    RemoteModel,
    hang_up,
    read_model,
)
from eft_integrations.backends.eft_server import EFTDialect
from eft_integrations.backends.engine_only import refuse_engine_options
from eft_integrations.backends.forking import forgets_in_children
from eft_integrations.backends.pool import Pool
from eft_integrations.backends.protocol import last_result
from eft_integrations.backends.refusals import Refusal
from eft_integrations.backends.vllm_server import VLLMDialect
from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.pieces import Pieces

DIALECTS: Mapping[str, Callable[[Connection, RemoteModel], Dialect]] = {"eft": EFTDialect, "vllm": VLLMDialect}


class RemoteBackend:
    """Answers with a trio that a server holds.

    Args:
        base_url: address of the server's API, with its version: "http://host:8000/v1".
        served_name: the name of the model there; None: the first that the server lists.
        api_key: what the server wants to be sent, if it wants one.
        connect_timeout_s: longest wait for a connection; answers may take as long as they take (adapters have timeouts of
            their own).

    Nothing is sent before something is asked. May be used from any thread and event loop.
    """

    def __init__(
        self,
        base_url: str,
        *,
        served_name: str | None = None,
        api_key: str | None = None,
        connect_timeout_s: float = 10.0,
    ) -> None:
        self._connection = Connection(base_url, api_key=api_key, connect_timeout_s=connect_timeout_s)
        self._served_name = served_name
        self._found: tuple[RemoteModel, Dialect] | None = None
        self._lock = threading.Lock()
        forgets_in_children(self)
        self.identity = f"{self._connection.url} {served_name or ''}"

    def in_child(self) -> None:
        """In a forked child: the lock may be held by a thread that is not there."""
        self._lock = threading.Lock()

    # ---- what the server says of itself --------------------------------------------------------------------------------

    @property
    def model(self) -> RemoteModel:
        """What the server says of the model; asked once.

        Raises:
            RemoteServerError: the server cannot be reached, or serves no trio.
            ModelNotFoundError: it has no model of that name.
        """
        return self._find()[0]

    def load(self) -> None:
        """Ask the server now what it holds; errors as for `model`."""
        self._find()

    check = load

    @property
    def is_loaded(self) -> bool:
        """Whether the server was asked already."""
        return self._found is not None

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._connection.is_closed

    @property
    def model_name(self) -> str:
        """See `ChatBackend`. A name that was given is not asked for."""
        return self._served_name or self.model.name

    @property
    def weights(self) -> Mapping[str, Weight]:
        """See `ChatBackend`."""
        return self.model.weights

    @property
    def context_len(self) -> int:
        """See `ChatBackend`."""
        return self.model.context_len

    def token_ids(self, text: str) -> list[int]:
        """See `ChatBackend`."""
        return self._dialect.token_ids(text)

    def count_prompt_tokens(self, request: ChatRequest) -> int:
        """See `ChatBackend`."""
        refuse_engine_options(request, url=self._connection.url)
        return self._dialect.count_prompt_tokens(request)

    def stats(self) -> EngineStats:
        """See `ChatBackend`: of all requests of the server, whoever sent them. Of single networks it tells nothing."""
        return self._dialect.stats()

    def check_ready(self, *, timeout_s: float) -> None:
        """Ask the server whether it takes requests. One that has no word for it, as vLLM's, is ready while it is healthy.

        Raises:
            RemoteServerError: it does not, or says nothing within the time.
        """
        for path in ("ready", "health"):
            response = self._connection.get(f"{self._connection.root}/{path}", timeout_s=timeout_s)
            if response.status_code != 404:
                break
        if response.status_code != 200:
            raise errors.RemoteServerError(
                f"the server at {self._connection.url} answered {response.status_code} to the question whether it is ready",
                status=response.status_code,
            )

    @property
    def _dialect(self) -> Dialect:
        return self._find()[1]

    def _find(self) -> tuple[RemoteModel, Dialect]:
        with self._lock:
            if self._found is None:
                self._found = self._ask()
            return self._found

    def _ask(self) -> tuple[RemoteModel, Dialect]:
        refuse_if_forbidden(self._connection.url)
        model = read_model(self._connection, self._served_name)
        if model.dialect not in DIALECTS:
            raise errors.RemoteServerError(
                f"the server at {self._connection.url} wants to be asked in the dialect {model.dialect!r}, and this client knows "
                f"{', '.join(DIALECTS)}; give both the same version of eft",
                status=None,
            )
        return model, DIALECTS[model.dialect](self._connection, model)

    # ---- answers -------------------------------------------------------------------------------------------------------

    def chat(self, request: ChatRequest) -> ChatResult:
        """See `ChatBackend`."""
        return last_result([delta.result for delta in self.stream(request)])

    def stream(self, request: ChatRequest) -> Generator[ChatDelta]:
        """See `ChatBackend`. The request is checked and sent now, not when the first piece is asked for."""
        refuse_engine_options(request, url=self._connection.url)
        dialect = self._dialect
        call = dialect.call(request)
        response = self._connection.open(call.url, call.body, request_id=request.request_id)
        if response.status_code != 200:
            with self._connection.reaching():
                response.read()
            raise dialect.meaning(Refusal.of(response), request)
        return Pieces(self._read(response, call, request), response.close, interrupt=lambda: hang_up(response))

    def _read(self, response: httpx.Response, call: Call, request: ChatRequest) -> Generator[ChatDelta]:
        events = EventReader()
        with self._connection.reaching():
            for data in response.iter_bytes():
                pieces, refusal = self._take(events, call, data)
                yield from pieces
                if refusal is not None:
                    raise self._dialect.meaning(refusal, request)
        events.finish()
        yield from call.finish()

    async def achat(self, request: ChatRequest) -> ChatResult:
        """See `ChatBackend`."""
        return last_result([delta.result async for delta in self.astream(request)])

    async def astream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        """See `ChatBackend`."""
        refuse_engine_options(request, url=self._connection.url)
        _, dialect = self._find() if self.is_loaded else await asyncio.to_thread(self._find)
        call, events = dialect.call(request), EventReader()
        response = await self._connection.aopen(call.url, call.body, request_id=request.request_id)
        try:
            with self._connection.reaching():
                if response.status_code != 200:
                    await response.aread()
                    raise await asyncio.to_thread(dialect.meaning, Refusal.of(response), request)
                async for data in response.aiter_bytes():
                    pieces, refusal = self._take(events, call, data)
                    for piece in pieces:
                        yield piece
                    if refusal is not None:
                        raise await asyncio.to_thread(dialect.meaning, refusal, request)
            events.finish()
            for piece in call.finish():
                yield piece
        finally:
            await response.aclose()

    def _take(self, events: EventReader, call: Call, data: bytes) -> tuple[list[ChatDelta], Refusal | None]:
        """The pieces that came, and why no more will come."""
        pieces: list[ChatDelta] = []
        with self._connection.reading():
            found = list(events.feed(data))
        for event in found:
            if "error" in event:
                return pieces, Refusal.of_event(event["error"])
            pieces += call.feed(event)
        return pieces, None

    def close(self) -> None:
        """Close the connections of threads; those of an event loop end with it. Nothing more can be asked."""
        self._connection.close()


# ---- one backend per server ----------------------------------------------------------------------------------------------

_SHARED: Pool[tuple[str, str | None, str | None], RemoteBackend] = Pool()


def remote_backend(base_url: str, *, served_name: str | None = None, api_key: str | None = None) -> RemoteBackend:
    """The process's backend of a server and a name there: the same arguments give the same connections, until it is closed.

    Raises:
        InvalidOptionError: `base_url` is no address.
    """
    return _SHARED.get(
        (base_url, served_name, api_key),
        lambda: RemoteBackend(base_url, served_name=served_name, api_key=api_key),
    )
