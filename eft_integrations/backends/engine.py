"""A backend that answers with an engine of this process."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from typing import TYPE_CHECKING

from eft_engine import EngineStats, GenerationDelta, errors
from eft_integrations.backends.protocol import last_result
from eft_integrations.chat.answer import AnswerReader
from eft_integrations.chat.prompt import Asked
from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.pieces import Pieces

if TYPE_CHECKING:
    from eft_engine import Engine


class EngineBackend:
    """Answers with an engine.

    Args:
        load: makes the engine; called once, when it is first needed.
        model_name: what reports and logs call the model.
        identity: see `ChatBackend`; made up if it is not given.
    """

    def __init__(self, load: Callable[[], Engine], *, model_name: str, identity: str | None = None) -> None:
        self.identity = identity or uuid.uuid4().hex
        self._load = load
        self._name = model_name
        self._engine: Engine | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    @classmethod
    def of(cls, engine: Engine, *, model_name: str, identity: str | None = None) -> EngineBackend:
        """Answers with an engine that is loaded already."""
        backend = cls(lambda: engine, model_name=model_name, identity=identity)
        backend._engine = engine
        return backend

    @property
    def engine(self) -> Engine:
        """The engine, loaded now if it is not yet.

        Raises:
            EngineClosedError: the backend was closed before it was.
        """
        if self._engine is None:
            with self._lock:
                if self._is_closed:
                    raise errors.EngineClosedError(f"the backend of {self._name} was closed; make a new one")
                if self._engine is None:
                    self._engine = self._load()
        return self._engine

    @property
    def is_loaded(self) -> bool:
        """Whether the engine is there already."""
        return self._engine is not None

    @property
    def is_closed(self) -> bool:
        """Whether this backend or its engine was closed, by anybody."""
        return self._is_closed or (self._engine is not None and self._engine.is_closed)

    @property
    def model_name(self) -> str:
        """See `ChatBackend`."""
        return self._name

    @property
    def weights(self) -> Mapping[str, float]:
        """See `ChatBackend`."""
        return self.engine.weights

    @property
    def context_len(self) -> int:
        """See `ChatBackend`."""
        return self.engine.context_len

    def token_ids(self, text: str) -> list[int]:
        """See `ChatBackend`."""
        return self.engine.token_ids(text)

    def count_prompt_tokens(self, request: ChatRequest) -> int:
        """See `ChatBackend`."""
        asked = Asked.of_engine(request, self.engine)
        return self.engine.count_prompt_tokens(asked.prompt, prompt_options=asked.options["prompt_options"])

    def template_of(self, pair: str) -> str | None:
        """The chat template of a pair's tuned model, which its own requests are rendered with."""
        return self.engine.chat_template_of(pair)

    def stats(self) -> EngineStats:
        """See `ChatBackend`."""
        return self.engine.stats()

    def close(self) -> None:
        """Close the engine, or never load one; whoever shares it loses it too."""
        with self._lock:
            self._is_closed = True
        if self._engine is not None:
            self._engine.close()

    def chat(self, request: ChatRequest) -> ChatResult:
        """See `ChatBackend`."""
        return last_result([delta.result for delta in self.stream(request)])

    def stream(self, request: ChatRequest) -> Generator[ChatDelta]:
        """See `ChatBackend`. The request is checked and submitted now, not when the first piece is asked for."""
        asked = Asked.of_engine(request, self.engine)
        deltas = self.engine.stream(asked.prompt, **asked.options)
        return Pieces(_read(deltas, AnswerReader(asked)), deltas.close)

    async def achat(self, request: ChatRequest) -> ChatResult:
        """See `ChatBackend`."""
        return last_result([delta.result async for delta in self.astream(request)])

    async def astream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        """See `ChatBackend`."""
        if self._engine is None:
            await asyncio.to_thread(lambda: self.engine)
        asked = Asked.of_engine(request, self.engine)
        reader = AnswerReader(asked)
        deltas = self.engine.astream(asked.prompt, **asked.options)
        try:
            async for delta in deltas:
                for piece in reader.feed(delta):
                    yield piece
        finally:
            await deltas.aclose()


def _read(deltas: Iterator[GenerationDelta], reader: AnswerReader) -> Generator[ChatDelta]:
    for delta in deltas:
        yield from reader.feed(delta)
