"""What all servers have in common: connections, JSON, streams of events, refusals and the list of models."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict
from weakref import WeakKeyDictionary

import httpx

from eft_engine import EngineStats, PromptPair, Usage, errors
from eft_engine.config import RewardWeights, resolve_weights
from eft_engine.weights import Weight, checked_weight, is_schedule
from eft_integrations.backends.forking import forgets_in_children
from eft_integrations.backends.refusals import Refusal
from eft_integrations.chat.request import ChatDelta, ChatRequest
from eft_integrations.json_types import JsonObject

Received = Mapping[str, Any]
"""JSON that a server sent; what it holds is found out inside `Connection.reading`."""


class _ClientOptions(TypedDict):
    headers: dict[str, str]
    timeout: httpx.Timeout
    limits: httpx.Limits


class Connection:
    """Connections to one server, for any thread and event loop.

    Args:
        base_url: address of the server's API, with its version: "http://host:8000/v1".
        api_key: what the server wants to be sent, if it wants one.
        connect_timeout_s: longest wait for a connection.

    Raises:
        InvalidOptionError: the address is none.
    """

    def __init__(self, base_url: str, *, api_key: str | None, connect_timeout_s: float) -> None:
        self.url = _checked_url(base_url)
        self.root = self.url.removesuffix("/v1")
        self._options = _ClientOptions(
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(None, connect=connect_timeout_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )
        self.is_closed = False
        self._begin()
        forgets_in_children(self)

    def _begin(self) -> None:
        self._client = httpx.Client(**self._options)
        self._async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def in_child(self) -> None:
        """In a forked child: the connections are the parent's, and answers would go to whoever reads first."""
        self._begin()

    def get(self, url: str, *, timeout_s: float | None = None) -> httpx.Response:
        """The whole answer, whatever its status; within a time, if one is given."""
        timeout = self._options["timeout"] if timeout_s is None else httpx.Timeout(timeout_s)
        with self.reaching():
            return self._client.get(url, timeout=timeout)

    def post(self, url: str, body: JsonObject) -> httpx.Response:
        """The whole answer, whatever its status."""
        with self.reaching():
            return self._client.post(url, content=as_json(body), headers=JSON_TYPE)

    def open(self, url: str, body: JsonObject, *, request_id: str | None = None) -> httpx.Response:
        """An answer that is still to be read, and closed; the server is told the id of the request."""
        with self.reaching():
            request = self._client.build_request("POST", url, content=as_json(body), headers=_headers(request_id))
            return self._client.send(request, stream=True)

    async def aopen(self, url: str, body: JsonObject, *, request_id: str | None = None) -> httpx.Response:
        """`open` without blocking the event loop."""
        with self.reaching():
            client = self._async_client()
            request = client.build_request("POST", url, content=as_json(body), headers=_headers(request_id))
            return await client.send(request, stream=True)

    def close(self) -> None:
        """Close the connections of threads; those of an event loop end with it. Nothing more can be asked."""
        self.is_closed = True
        self._client.close()

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Connections that fail, as this package's errors."""
        if self.is_closed:
            raise errors.EngineClosedError(f"the backend of {self.url} was closed; make a new one")
        try:
            yield
        except (httpx.RequestError, httpx.StreamError) as error:
            raise errors.RemoteServerError(
                f"the server at {self.url} cannot be reached: {error!r}", status=None
            ) from error

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Answers of another form than expected, as this package's error."""
        try:
            yield
        except errors.EFTError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise errors.RemoteServerError(
                f"what the server at {self.url} sent cannot be read: {error!r}", status=None
            ) from error

    def _async_client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._async_clients:
                self._async_clients[loop] = httpx.AsyncClient(**self._options)
            return self._async_clients[loop]


def hang_up(response: httpx.Response) -> None:
    """End an answer that another thread waits for: closing it here would leave that thread waiting. Over already, its connection is
    somebody else's.
    """
    if response.is_closed:
        return
    stream = response.extensions.get("network_stream")
    connection = None if stream is None else stream.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):  # the server was quicker
            connection.shutdown(socket.SHUT_RDWR)


STATS_TIMEOUT_S = 10.0
"""How long a server may take to tell its metrics."""
JSON_TYPE = {"Content-Type": "application/json"}


def _headers(request_id: str | None) -> dict[str, str]:
    """Headers of a request with this id.

    Raises:
        InvalidOptionError: a header cannot carry the id.
    """
    if request_id is None:
        return JSON_TYPE
    if not (request_id.isascii() and request_id.isprintable()):
        raise errors.InvalidOptionError(
            f"request_id must be printable ASCII where a server is asked, got {request_id[:80]!r}",
            option="request_id",
            value=request_id,
        )
    return {**JSON_TYPE, "X-Request-Id": request_id}


def _checked_url(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise errors.InvalidOptionError(f"base_url: {error}", option="base_url", value=base_url) from None
    if url.scheme not in ("http", "https") or not url.host:
        raise errors.InvalidOptionError(
            f'base_url is written "http://host:8000/v1", got {base_url!r}', option="base_url", value=base_url
        )
    return base_url.rstrip("/")


def as_json(body: JsonObject) -> bytes:
    """A body as bytes.

    Raises:
        InvalidOptionError: it holds what JSON cannot carry.
    """
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise errors.InvalidOptionError(f"the request cannot be sent to a server as JSON: {error}") from error


# ---- events --------------------------------------------------------------------------------------------------------------


class EventReader:
    """Server-sent events out of the bytes of an answer. Lines end at line feeds alone, since texts may hold other separators."""

    def __init__(self) -> None:
        self._held = b""
        self._is_over = False

    def feed(self, data: bytes) -> Iterator[Received]:
        """The events that became whole, but the last one, [DONE]."""
        *lines, self._held = (self._held + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            text = line.removeprefix(b"data:").strip()
            if text == b"[DONE]":
                self._is_over = True
            else:
                event = json.loads(text)
                if not isinstance(event, Mapping):
                    raise ValueError(f"an event is no JSON object: {text[:100]!r}")
                yield event

    def finish(self) -> None:
        """The bytes are over.

        Raises:
            RemoteServerError: and [DONE] did not come.
        """
        if not self._is_over:
            raise not_whole("it broke off")


def not_whole(reason: str) -> errors.RemoteServerError:
    """The error of an answer that ended before its end."""
    return errors.RemoteServerError(f"the server's answer is not whole: {reason}", status=None)


def read_usage(usage: Received) -> Usage:
    """Token counts in OpenAI's form."""
    prompt, completion = (usage.get(f"{side}_tokens_details") or {} for side in ("prompt", "completion"))
    return Usage(
        prompt_tokens=int(usage["prompt_tokens"]),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        cached_prompt_tokens=int(prompt.get("cached_tokens") or 0),
        reasoning_tokens=int(completion.get("reasoning_tokens") or 0),
    )


def received_bytes(values: list[int] | None) -> tuple[int, ...] | None:
    """The bytes of a token with log-probabilities; None: it has none."""
    return None if values is None else tuple(int(value) for value in values)


def bytes_of_text(token: str) -> tuple[int, ...] | None:
    """The bytes of a token of which only the text came; None: a part of a character, which is no text."""
    return None if "\ufffd" in token else tuple(token.encode())


# ---- models and dialects -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RemoteModel:
    """What a server says of a model that it serves; `dialect` is how it wants to be asked. Of the pairs in `weights`,
    `prompt_pairs` are prompts: one weight for all does not mean them.
    """

    name: str
    context_len: int
    weights: Mapping[str, Weight]
    dialect: str
    prompt_pairs: frozenset[str] = frozenset()

    def check_weights(self, asked: RewardWeights, prompt_pairs: Mapping[str, PromptPair]) -> dict[str, Weight]:
        """The weights of a request that brings these prompt pairs.

        Raises:
            UnknownPairError: there is no such pair.
            InvalidWeightError: a weight is neither a finite number nor a schedule.
        """
        own = {**self.weights, **{name: pair.weight for name, pair in prompt_pairs.items()}}
        if asked is None or (isinstance(asked, Mapping) and not is_schedule(asked)):
            return resolve_weights(asked, own, owner=self.name)
        models = {name: weight for name, weight in self.weights.items() if name not in self.prompt_pairs}
        return {**own, **resolve_weights(asked, models, owner=self.name)}


def read_model(connection: Connection, served_name: str | None) -> RemoteModel:
    """What a server says of the model of this name, or of its first.

    Raises:
        RemoteServerError: the server cannot be reached, or does not hold trios.
        ModelNotFoundError: it has no model of that name.
    """
    url = f"{connection.url}/models"
    response = connection.get(url)
    if response.status_code in (401, 403):
        raise Refusal.of(response).meaning()
    try:
        listed = {str(model["id"]): model for model in response.json()["data"]} if response.status_code == 200 else None
    except (LookupError, TypeError, ValueError):
        listed = None
    if not listed:
        said = f"{response.status_code} and {response.text[:100]!r}"
        raise _other_server(f"{url} answered {said}, not a list of models", status=response.status_code)
    name = served_name or next(iter(listed))
    if name not in listed:
        raise errors.ModelNotFoundError(f"there is no model {name!r} at {connection.url}; it has {', '.join(listed)}")
    found = listed[name]
    if "eft" not in found:
        owner = f" (owned by {found['owned_by']!r})" if found.get("owned_by") else ""
        raise _other_server(f"{url} lists {name!r}{owner} and says nothing of pairs", status=None)
    with connection.reading():
        return RemoteModel(
            name=name,
            context_len=int(found["max_model_len"]),
            weights=_read_weights(found["eft"]["pairs"]),
            dialect=str(found["eft"].get("dialect")),
            prompt_pairs=frozenset(map(str, found["eft"].get("prompt_pairs") or ())),
        )


def _read_weights(told: Mapping[str, Any]) -> dict[str, Weight]:
    """Weights by pair; a kind of schedule that is not known here raises InvalidWeightError, which says so."""
    return {str(pair): checked_weight(weight, f"pair {pair!r}") for pair, weight in told.items()}


def _other_server(what: str, *, status: int | None) -> errors.RemoteServerError:
    return errors.RemoteServerError(
        f"{what}, so it is no server of trios. Start one with eft serve or eft serve --engine vllm, and give its address with "
        'the version: base_url="http://host:8000/v1". Other servers have clients of their own',
        status=status,
    )


class Call(Protocol):
    """One request as it is sent, and its answer as it comes."""

    @property
    def url(self) -> str:
        """Where to."""

    @property
    def body(self) -> JsonObject:
        """What is sent."""

    def feed(self, event: Received) -> list[ChatDelta]:
        """The pieces that an event holds."""

    def finish(self) -> list[ChatDelta]:
        """The last pieces, with the result.

        Raises:
            RemoteServerError: the answer is not whole.
        """


class Dialect(Protocol):
    """How a kind of server is asked."""

    def call(self, request: ChatRequest) -> Call:
        """The request, checked; errors as for an engine."""

    def token_ids(self, text: str) -> list[int]:
        """See `ChatBackend`."""

    def count_prompt_tokens(self, request: ChatRequest) -> int:
        """See `ChatBackend`."""

    def stats(self) -> EngineStats:
        """See `ChatBackend`."""

    def meaning(self, refusal: Refusal, request: ChatRequest) -> errors.EFTError:
        """What it means that this request was refused, or failed. May ask the server."""
