"""A request with the time that its answer may take, on its way to a backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

from eft_integrations.backends.protocol import ChatBackend, last_result
from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.in_time import InTime, late
from eft_integrations.pieces import Pieces

Form = TypeVar("Form")


@dataclass(frozen=True)
class Question:
    """What an adapter asks.

    After `timeout_s` seconds the request is cancelled, and whoever reads the answer gets a TimeoutError. `named` is how the call
    named the model, perhaps with weights behind the name; None: it did not. `on_result` is told the whole answer when it is there.
    """

    backend: ChatBackend
    request: ChatRequest
    named: str | None
    timeout_s: float | None = None
    on_result: Callable[[ChatResult], object] | None = None

    @property
    def model_name(self) -> str:
        """How the call named the model, or the model's own name. A server that was asked nothing yet is asked for that."""
        return self.named or self.backend.model_name

    def answer(self) -> ChatResult:
        """The whole answer."""
        return last_result(list(self.stream(lambda delta: delta.result)))

    async def aanswer(self) -> ChatResult:
        """The whole answer, without blocking the event loop."""
        return last_result([result async for result in self.astream(lambda delta: delta.result)])

    def stream(self, form: Callable[[ChatDelta], Form]) -> Generator[Form]:
        """The answer in pieces, in a host's form; the request is submitted now, and closing the iterator cancels it."""
        form = self._telling(form)
        if self.timeout_s is not None:
            answer = InTime(lambda: self.backend.stream(self.request), timeout_s=self.timeout_s)
            return Pieces((form(delta) for delta in answer.pieces()), answer.leave)
        deltas = self.backend.stream(self.request)
        return Pieces((form(delta) for delta in deltas), deltas.close)  # type: ignore[attr-defined]

    async def astream(self, form: Callable[[ChatDelta], Form]) -> AsyncGenerator[Form]:
        """`stream` without blocking the event loop; the clock runs from the first time that a piece is asked for."""
        deadline = None if self.timeout_s is None else asyncio.get_running_loop().time() + self.timeout_s
        form = self._telling(form)
        deltas = self.backend.astream(self.request)
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    delta = await anext(deltas, None)
                if delta is None:
                    return
                yield form(delta)
        except TimeoutError as error:
            raise late(self.timeout_s) from error
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]

    def _telling(self, form: Callable[[ChatDelta], Form]) -> Callable[[ChatDelta], Form]:
        """The form, and `on_result` told before it."""
        tell = self.on_result
        if tell is None:
            return form

        def telling(delta: ChatDelta) -> Form:
            if delta.result is not None:
                tell(delta.result)
            return form(delta)

        return telling
