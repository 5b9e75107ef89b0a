"""A request with the time that its answer may take, on its way to a backend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

from eft_integrations.backends.protocol import ChatBackend, last_result
from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.pieces import Pieces

Form = TypeVar("Form")


@dataclass(frozen=True)
class Question:
    """What an adapter asks.

    After `timeout_s` seconds the request is cancelled, and whoever reads the answer gets a TimeoutError. `model_name` is how the
    call named the model, perhaps with weights behind the name.
    """

    backend: ChatBackend
    request: ChatRequest
    model_name: str
    timeout_s: float | None = None

    def answer(self) -> ChatResult:
        """The whole answer."""
        return last_result(list(self.stream(lambda delta: delta.result)))

    async def aanswer(self) -> ChatResult:
        """The whole answer, without blocking the event loop."""
        return last_result([result async for result in self.astream(lambda delta: delta.result)])

    def stream(self, form: Callable[[ChatDelta], Form]) -> Generator[Form]:
        """The answer in pieces, in a host's form; the request is submitted now, and closing the iterator cancels it."""
        deadline = None if self.timeout_s is None else time.monotonic() + self.timeout_s
        deltas = self.backend.stream(self.request)
        return Pieces(self._until(deadline, deltas, form), deltas.close)  # type: ignore[attr-defined]

    def _until(
        self, deadline: float | None, deltas: Iterator[ChatDelta], form: Callable[[ChatDelta], Form]
    ) -> Generator[Form]:
        for delta in deltas:
            yield form(delta)
            if deadline is not None and time.monotonic() > deadline and delta.result is None:
                raise self._late()

    async def astream(self, form: Callable[[ChatDelta], Form]) -> AsyncGenerator[Form]:
        """`stream` without blocking the event loop; the clock runs from the first time that a piece is asked for."""
        deadline = None if self.timeout_s is None else asyncio.get_running_loop().time() + self.timeout_s
        deltas = self.backend.astream(self.request)
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    delta = await anext(deltas, None)
                if delta is None:
                    return
                yield form(delta)
        except TimeoutError as error:
            raise self._late() from error
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]

    def _late(self) -> TimeoutError:
        return TimeoutError(f"no whole answer within {self.timeout_s} s; the request was cancelled")
