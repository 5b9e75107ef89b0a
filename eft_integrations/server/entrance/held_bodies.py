"""The memory that bodies may take together: who has a large one waits until there is room for all of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator

SMALL_BYTES = 64 * 1024
"""What uvicorn reads of a body before anybody asks for it; smaller ones do not wait."""


class HeldBodies:
    """Room for bodies, given in the order in which it was asked for. Belongs to one event loop."""

    def __init__(self, most_bytes: int) -> None:
        self._free = most_bytes
        self._most = most_bytes
        self._line: deque[tuple[asyncio.Future[None], int]] = deque()

    @contextlib.asynccontextmanager
    async def room(self, num_bytes: int) -> AsyncGenerator[None]:
        """Wait for room, and keep it until the block ends."""
        num_bytes = min(num_bytes, self._most)
        if num_bytes <= SMALL_BYTES:
            yield
            return
        await self._take(num_bytes)
        try:
            yield
        finally:
            self._give_back(num_bytes)

    async def _take(self, num_bytes: int) -> None:
        if not self._line and num_bytes <= self._free:
            self._free -= num_bytes
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((turn, num_bytes))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(num_bytes)  # it had just got it
            else:
                self._line.remove((turn, num_bytes))
                self._serve()
            raise

    def _give_back(self, num_bytes: int) -> None:
        self._free += num_bytes
        self._serve()

    def _serve(self) -> None:
        while self._line and self._line[0][1] <= self._free:
            turn, num_bytes = self._line.popleft()
            self._free -= num_bytes
            turn.set_result(None)
