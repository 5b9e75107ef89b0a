"""What a scripted backend is told to answer: texts, messages, errors, waits, functions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, cast

from eft_integrations.chat.messages import Message
from eft_integrations.chat.request import ChatRequest, ChatResult
from eft_integrations.json_types import Json


class Auto:
    """The reply that a scripted backend finds by itself; see `AUTO`."""

    def __repr__(self) -> str:
        return "AUTO"


AUTO = Auto()
"""As a reply: what fits the request is found by itself (see `ScriptedBackend`)."""


class Gate:
    """Where a scripted answer waits until a test opens it: for tests of timeouts and cancellation that wait for no clock.

    >>> gate = Gate()
    >>> gate.open()
    >>> gate.is_open, gate.wait_until_reached(timeout_s=0)
    (True, False)
    """

    def __init__(self) -> None:
        self._is_open = False
        self._reached = threading.Event()
        self._waiting: set[Callable[[], object]] = set()
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether answers pass."""
        return self._is_open

    def open(self) -> None:
        """Let all answers pass, those that wait and those to come; from any thread."""
        with self._lock:
            self._is_open = True
            for wake in self._waiting:
                wake()

    def wait_until_reached(self, timeout_s: float | None = None) -> bool:
        """Wait until an answer stands here, or has; False after `timeout_s` seconds. Not for the event loop's own thread."""
        return self._reached.wait(timeout_s)

    def pass_through(self, woken: threading.Event) -> None:
        """Wait until it is open, or until somebody else sets `woken`."""
        with self._waker(woken.set):
            woken.wait()

    async def apass_through(self) -> None:
        """Wait until it is open, without blocking the event loop."""
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        with self._waker(lambda: loop.call_soon_threadsafe(woken.set)):
            await woken.wait()

    @contextmanager
    def _waker(self, wake: Callable[[], object]) -> Iterator[None]:
        with self._lock:
            self._waiting.add(wake)
            if self._is_open:
                wake()
        self._reached.set()
        try:
            yield
        finally:
            with self._lock:
                self._waiting.discard(wake)


@dataclass(frozen=True)
class Broken:
    """A reply that ends with an error behind its first `after` pieces (words, parts of calls), or behind all of them."""

    reply: Reply
    error: BaseException | type[BaseException]
    after: int = 0


@dataclass(frozen=True)
class Gated:
    """A reply that waits at a gate behind its first `after` pieces."""

    reply: Reply
    gate: Gate
    after: int = 0


Answer: TypeAlias = str | Message | ChatResult | Mapping[str, Json]
"""What is answered as it stands; a mapping as JSON."""
Reply: TypeAlias = (
    Answer | Auto | Broken | Gated | BaseException | type[BaseException] | Callable[[ChatRequest], "Reply | None"]
)
"""What answers a request; a function makes it from the request, and leaves it to `AUTO` where it returns None."""


@dataclass(frozen=True)
class Plan:
    """How one request is answered: with what, and what happens behind its first pieces."""

    answer: Answer | Auto
    error: BaseException | None = None
    breaks_after: int = 0
    gate: Gate | None = None
    waits_after: int = 0


def planned(reply: Reply | None, request: ChatRequest) -> Plan:
    """What a reply says of a request.

    Raises:
        Exception: a function failed, or the reply is an error itself.
        TypeError: it is no reply.
    """
    match reply:
        case None:
            return Plan(AUTO)
        case str() | Message() | ChatResult() | Mapping() | Auto():
            return Plan(reply)
        case BaseException():
            raise reply
        case Broken():
            inner = planned(reply.reply, request)
            error = reply.error() if isinstance(reply.error, type) else reply.error
            return Plan(inner.answer, error, reply.after, inner.gate, inner.waits_after)
        case Gated():
            inner = planned(reply.reply, request)
            return Plan(inner.answer, inner.error, inner.breaks_after, reply.gate, reply.after)
    if isinstance(reply, type) and issubclass(reply, BaseException):
        raise reply
    if not callable(reply):
        raise TypeError(
            f"a reply is a text, a mapping, a Message, a ChatResult, an error, AUTO, Broken, Gated or a function, got {reply!r}"
        )
    make = cast("Callable[[ChatRequest], Reply | None]", reply)
    return planned(make(request), request)
