"""Which weights a query engine's or chat engine's answer was asked at, in its `metadata`.

LlamaIndex reports every query, synthesis and call of a model as spans, nested as they call each other. What is asked inside of the
span of an answer belongs to that answer; so does what a streamed answer asks when it is read.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.span import active_span_id
from llama_index_instrumentation.span_handlers import NullSpanHandler
from pydantic import PrivateAttr

from eft_integrations.chat.request import ChatResult
from eft_integrations.context_aware import ContextAwareness
from eft_integrations.lazy import is_lazy

KEY = "eft"
"""Key of `metadata` beside the ids of the source nodes."""
WITH_METADATA = (Response, PydanticResponse, StreamingResponse, AsyncStreamingResponse, AgentChatResponse)


@dataclass(eq=False)
class Asked:
    """What was asked inside of one span, and the answers that the span gave.

    A streamed answer holds its request, and that holds this, to tell it what was asked. So answers are held weakly: one that is
    dropped ends its request at once.
    """

    parent_id: str | None = None
    is_of_postprocessor: bool = False
    context: ContextAwareness | None = None
    results: list[tuple[str, object]] = field(default_factory=list)
    answers: list[weakref.ref[Any]] = field(default_factory=list)

    def record(self, result: ChatResult) -> None:
        """One more answer of a model."""
        self.results.append((result.content, result.metadata.get("reward_weights")))
        for own in self.answers:
            if (answer := own()) is not None:
                self._tell(answer)

    def attach(self, answer: Any) -> None:
        """The span's own answer; of a streamed one, what is asked while it is read counts too."""
        self.answers.append(weakref.ref(answer))
        _WRITERS.setdefault(id(answer), (self, weakref.ref(answer, functools.partial(_forget, id(answer)))))
        if isinstance(answer, StreamingResponse) and is_lazy(answer.response_gen):
            answer.response_gen = _read(answer.response_gen, self)
        elif isinstance(answer, AsyncStreamingResponse) and is_lazy(answer.response_gen):
            answer.response_gen = _aread(answer.response_gen, self)
        if self.results:
            self._tell(answer)

    def _tell(self, answer: Any) -> None:
        everything = [weights for _, weights in self.results]
        distinct = [weights for index, weights in enumerate(everything) if weights not in everything[:index]]
        report: dict[str, object] = {"reward_weights": self._wrote(answer)}
        if len(distinct) > 1:
            report["all_reward_weights"] = distinct
        answer.metadata = {**(answer.metadata or {}), KEY: report}  # a new mapping: the old one may be a node's

    def _wrote(self, answer: Any) -> object:
        """The weights of what wrote an answer: of what its innermost span asked, the last one that said the same, else the last.

        Something may be asked behind it: a judge of the answer, or what a memory should keep of it.
        """
        results = _WRITERS[id(answer)][0].results or self.results
        same = [weights for text, weights in results if text == getattr(answer, "response", None)]
        return same[-1] if same else results[-1][1]


_WRITERS: dict[int, tuple[Asked, weakref.ref[Any]]] = {}
"""The innermost span of every answer that lives, by the answer's id."""


def _forget(answer_id: int, _: weakref.ref[Any]) -> None:
    _WRITERS.pop(answer_id, None)


_READING: ContextVar[tuple[Asked, ...]] = ContextVar("eft_answers_being_read", default=())
"""Whose streamed answers are being read here, the outermost first."""


def _read(pieces: Generator[Any, None, None], asked: Asked) -> Generator[Any, None, None]:
    try:
        while True:
            token = _READING.set((*_READING.get(), asked))
            try:
                piece = next(pieces)
            except StopIteration:
                return
            finally:
                _READING.reset(token)
            yield piece
    finally:
        pieces.close()


async def _aread(pieces: AsyncGenerator[Any, None], asked: Asked) -> AsyncGenerator[Any, None]:
    try:
        while True:
            token = _READING.set((*_READING.get(), asked))
            try:
                piece = await anext(pieces)
            except StopAsyncIteration:
                return
            finally:
                _READING.reset(token)
            yield piece
    finally:
        await pieces.aclose()


class QueryWeights(NullSpanHandler):
    """Remembers, of every open span, what is asked inside of it; it has no spans of its own."""

    _open: dict[str, Asked] = PrivateAttr(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        """What LlamaIndex calls the handler."""
        return "QueryWeights"

    def _inside(self) -> Iterator[Asked]:
        """What is known of the spans here, the innermost first."""
        span_id = active_span_id.get()
        while span_id is not None and (asked := self._open.get(span_id)) is not None:
            yield asked
            span_id = asked.parent_id

    def note_context(self, context: ContextAwareness) -> bool:
        """Answers of the engine that asks a postprocessor here are to keep to their nodes; False: none asks."""
        engine = next((asked for asked in self._inside() if not asked.is_of_postprocessor), None)
        if engine is not None:
            engine.context = context
        return engine is not None

    def context_in_effect(self) -> ContextAwareness | None:
        """How an answer that is asked for here keeps to its nodes; None: as the model has it."""
        spans = [*self._inside(), *reversed(_READING.get())]
        if any(asked.is_of_postprocessor for asked in spans):
            return None
        return next((asked.context for asked in spans if asked.context is not None), None)

    def listeners(self) -> Callable[[ChatResult], None]:
        """What to tell of an answer to a question that is asked here, innermost span first."""
        reading = _READING.get()
        inside = list(self._inside())

        def tell(result: ChatResult) -> None:
            for asked in (*inside, *reversed(reading)):
                asked.record(result)

        return tell

    def span_enter(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        parent_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """See `BaseSpanHandler`."""
        self._open[id_] = Asked(parent_id, isinstance(instance, BaseNodePostprocessor))

    def span_exit(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        result: Any | None = None,
        **kwargs: Any,
    ) -> None:
        """See `BaseSpanHandler`."""
        asked = self._open.pop(id_, None)
        if asked is not None and isinstance(result, WITH_METADATA):
            asked.attach(result)

    def span_drop(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any | None = None,
        err: BaseException | None = None,
        **kwargs: Any,
    ) -> None:
        """See `BaseSpanHandler`."""
        self._open.pop(id_, None)


QUERY_WEIGHTS = QueryWeights()
get_dispatcher().add_span_handler(QUERY_WEIGHTS)
