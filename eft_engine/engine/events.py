"""What an engine tells the caller of one request: the same events for a thread that waits and for an event loop."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from typing import cast

from eft_engine.engine.sequence import Event, Sequence
from eft_engine.engine.worker import EngineWorker
from eft_engine.errors import EFTError
from eft_engine.outputs import GenerationDelta, RequestOutput, ScoreOutput


class BlockingEvents:
    """Events of one sequence for a caller that waits in its own thread."""

    def __init__(self, worker: EngineWorker) -> None:
        self._worker = worker
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.put = self._events.put

    def take(self) -> GenerationDelta | ScoreOutput:
        """The next event; raises the error that the sequence ended with."""
        return _unless_error(self._events.get())

    def deltas(self, sequence: Sequence) -> Iterator[GenerationDelta]:
        """Up to the last one, which carries the output; closing the iterator cancels the sequence."""
        try:
            while True:
                delta = cast(GenerationDelta, self.take())
                yield delta
                if delta.output is not None:
                    return
        finally:
            self._worker.cancel(sequence)

    def output(self, sequence: Sequence) -> RequestOutput:
        """What the last delta carries."""
        *_, last = self.deltas(sequence)
        return _output(last)


class AsyncEvents:
    """Events of one sequence for a caller in an event loop."""

    def __init__(self, worker: EngineWorker) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """Called in the engine's thread."""
        if not self._loop.is_closed():  # a loop that is gone has nobody left to tell
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def take(self) -> GenerationDelta | ScoreOutput:
        """`BlockingEvents.take`."""
        return _unless_error(await self._events.get())

    async def deltas(self, sequence: Sequence) -> AsyncIterator[GenerationDelta]:
        """`BlockingEvents.deltas`."""
        try:
            while True:
                delta = cast(GenerationDelta, await self.take())
                yield delta
                if delta.output is not None:
                    return
        finally:
            self._worker.cancel(sequence)

    async def output(self, sequence: Sequence) -> RequestOutput:
        """`BlockingEvents.output`."""
        async for delta in self.deltas(sequence):
            last = delta
        return _output(last)


def _unless_error(event: Event) -> GenerationDelta | ScoreOutput:
    if isinstance(event, EFTError):
        raise event
    return event


def _output(last: GenerationDelta) -> RequestOutput:
    assert last.output is not None, "a stream ends with its output"
    return last.output
