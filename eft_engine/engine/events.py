"""What an engine tells the caller of one request, and how the engine learns that the caller has left.

The engine holds where events go, and never what the caller reads them from. So an answer that nobody holds any more is collected
like any object, and says so to its request: whether it was read, begun or never touched, and whether its event loop still runs.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from types import TracebackType
from typing import cast

from eft_engine.engine.own_process import OwnProcess
from eft_engine.engine.requests import MakeSequence
from eft_engine.engine.sequence import Event
from eft_engine.errors import EFTError
from eft_engine.outputs import GenerationDelta, RequestOutput, ScoreOutput


class CallerLeftError(Exception):
    """Whoever waits for an event learns that the answer was closed beside it."""


class BlockingEvents:
    """A request and its events, for a caller that waits in its own thread."""

    def __init__(self, make: MakeSequence) -> None:
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._process = OwnProcess()
        self.sequence = make(self._events.put)

    def take(self) -> GenerationDelta | ScoreOutput:
        """The next event; raises the error that the request ended with.

        Raises:
            CallerLeftError: `leave` was called.
            ForkedEngineError: this is a child of the engine's process, where nobody tells anything.
        """
        self._process.check()
        event = self._events.get()
        if event is None:
            self._events.put(None)  # for the next one who waits
        return _told(event)

    def output(self) -> RequestOutput:
        """What the last delta carries."""
        while (output := cast(GenerationDelta, self.take()).output) is None:
            pass
        return output

    def leave(self) -> None:
        """Cancel the request, if it is not over; who waits in another thread stops."""
        self.sequence.cancel()
        self._events.put(None)


class AsyncEvents:
    """A request and its events, for a caller in the event loop that runs here now."""

    def __init__(self, make: MakeSequence) -> None:
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self.sequence = make(_Mailbox(loop, self._events).put)
        self.sequence.is_caller_gone = loop.is_closed

    async def take(self) -> GenerationDelta | ScoreOutput:
        """`BlockingEvents.take`."""
        event = await self._events.get()
        if event is None:
            self._events.put_nowait(None)
        return _told(event)

    async def output(self) -> RequestOutput:
        """`BlockingEvents.output`."""
        while (output := cast(GenerationDelta, await self.take()).output) is None:
            pass
        return output

    def leave(self) -> None:
        """`BlockingEvents.leave`, in the event loop."""
        self.sequence.cancel()
        self._events.put_nowait(None)


class _Mailbox:
    """Takes events to an event loop, unless it was closed: then nobody is left to be told."""

    def __init__(self, loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event | None]) -> None:
        self._loop = loop
        self._events = events

    def put(self, event: Event) -> None:
        """Called in the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:
            if not self._loop.is_closed():
                raise


class Deltas(Generator[GenerationDelta, None, None]):
    """The pieces of an answer, the last one with the output. Closing it, or dropping it, cancels the request at any time: a
    generator's own code would not run before the first piece was asked for.
    """

    def __init__(self, events: BlockingEvents) -> None:
        self._events = events
        self._is_over = False

    def send(self, value: None) -> GenerationDelta:
        """The next piece."""
        if self._is_over:
            raise StopIteration
        try:
            delta = cast(GenerationDelta, self._events.take())
        except CallerLeftError:
            raise StopIteration from None
        except BaseException:
            self.close()
            raise
        if delta.output is not None:
            self.close()
        return delta

    def throw(
        self,
        kind: type[BaseException] | BaseException,
        error: BaseException | object = None,
        trace: TracebackType | None = None,
        /,
    ) -> GenerationDelta:
        """Close it and raise."""
        self.close()
        raise error if isinstance(error, BaseException) else kind

    def close(self) -> None:
        """Cancel the request, if it is not over; there are no more pieces. May be called from any thread."""
        self._is_over = True
        self._events.leave()

    def __del__(self) -> None:
        self._events.sequence.cancel()


class AsyncDeltas(AsyncGenerator[GenerationDelta, None]):
    """`Deltas` for an event loop. The request is made when the first piece is asked for.

    Args:
        ask: makes the request and submits it.
    """

    def __init__(self, ask: Callable[[], Awaitable[AsyncEvents]]) -> None:
        self._ask = ask
        self._events: AsyncEvents | None = None
        self._is_read = False
        self._is_over = False

    async def asend(self, value: None) -> GenerationDelta:
        """The next piece.

        Raises:
            RuntimeError: another task waits for it.
        """
        if self._is_over:
            raise StopAsyncIteration
        if self._is_read:
            raise RuntimeError("another task waits for the next piece of this answer; open one stream per task")
        self._is_read = True
        try:
            delta = await self._next()
        except CallerLeftError:
            raise StopAsyncIteration from None
        except BaseException:
            self._leave()
            raise
        finally:
            self._is_read = False
        if delta.output is not None:
            self._leave()
        return delta

    async def _next(self) -> GenerationDelta:
        if self._events is None:
            self._events = await self._ask()
            if self._is_over:  # closed meanwhile
                self._events.leave()
        return cast(GenerationDelta, await self._events.take())

    async def athrow(
        self,
        kind: type[BaseException] | BaseException,
        error: BaseException | object = None,
        trace: TracebackType | None = None,
        /,
    ) -> GenerationDelta:
        """Close it and raise."""
        self._leave()
        raise error if isinstance(error, BaseException) else kind

    async def aclose(self) -> None:
        """Cancel the request, if it is not over; there are no more pieces."""
        self._leave()

    def _leave(self) -> None:
        self._is_over = True
        if self._events is not None:
            self._events.leave()

    def __del__(self) -> None:
        if self._events is not None:
            self._events.sequence.cancel()


def _told(event: Event | None) -> GenerationDelta | ScoreOutput:
    if event is None:
        raise CallerLeftError
    if isinstance(event, EFTError):
        raise event
    return event
