"""Predictions of objects of a pydantic class, whose JSON is decoded under the class's schema.

LlamaIndex' own predictions report their beginning, their objects and their end as events; so do these.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from typing import Generic

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.instrumentation.events import llm as events
from llama_index.core.llms.llm import LLM
from llama_index.core.program.utils import create_flexible_model
from llama_index.core.prompts import BasePromptTemplate
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel

from eft_integrations.class_schema import schema_of_class
from eft_integrations.json_objects import Model, ObjectReader
from eft_integrations.llama_index.context_aware import in_context
from eft_integrations.llama_index.keywords import check_variables
from eft_integrations.pieces import Pieces
from eft_integrations.wire.openai import schema_format, wrong

NOT_STRUCTURED = frozenset({"tools", "tool_required", "tool_choice", "allow_parallel_tool_calls"})
"""Keywords without meaning where the answer is JSON of a schema; LlamaIndex's programs drop them too."""

dispatcher = get_dispatcher(__name__)


class Prediction(Generic[Model]):
    """One prediction: `messages` and `keywords` are those of the chat call behind it. Its beginning is reported now."""

    def __init__(
        self,
        llm: LLM,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: Mapping[str, object] | None,
        prompt_args: dict[str, object],
    ) -> None:
        dispatcher.event(
            events.LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        check_variables(prompt, prompt_args)
        asked = {name: value for name, value in (llm_kwargs or {}).items() if name not in NOT_STRUCTURED}
        if (other := asked.pop("response_format", None)) is not None:
            raise wrong("response_format", f"the answer is an object of {output_cls.__name__}; leave it out", other)
        wanted = schema_format(output_cls.__name__, schema_of_class(output_cls))

        def make(variables: dict[str, object]) -> list[ChatMessage]:
            return llm._extend_messages(prompt.format_messages(llm=llm, **variables))

        self.messages = in_context(make(prompt_args), make, prompt_args)
        self.keywords: dict[str, object] = {"response_format": wanted, **asked}
        self._reader = ObjectReader(output_cls, create_flexible_model)

    def whole(self, response: ChatResponse) -> Model:
        """The object of a whole answer.

        Raises:
            IncompleteOutputError: `max_tokens` does not hold it.
            OutputError: it breaks a rule that no mask can hold, or that a schema cannot express (a validator).
        """
        output = self._whole(response)
        dispatcher.event(events.LLMStructuredPredictEndEvent(output=output))
        return output

    def objects(self, chunks: Generator[ChatResponse, None, None]) -> Generator[Model | BaseModel, None, None]:
        """The object as it grows; the last one is whole."""
        return Pieces(self._objects(chunks), chunks.close)

    def _objects(self, chunks: Iterator[ChatResponse]) -> Generator[Model | BaseModel, None, None]:
        output = None
        for chunk in chunks:
            if (output := self._feed(chunk)) is not None:
                yield output
        dispatcher.event(events.LLMStructuredPredictEndEvent(output=output))

    async def aobjects(self, chunks: AsyncIterator[ChatResponse]) -> AsyncGenerator[Model | BaseModel, None]:
        """See `objects`."""
        output = None
        async for chunk in chunks:
            if (output := self._feed(chunk)) is not None:
                yield output
        dispatcher.event(events.LLMStructuredPredictEndEvent(output=output))

    def _whole(self, response: ChatResponse) -> Model:
        raw = response.raw or {}
        was_cut = raw["choices"][0]["finish_reason"] == "length"
        return self._reader.whole(response.message.content or "", was_cut=was_cut, fault=raw["eft"].get("format_error"))

    def _feed(self, chunk: ChatResponse) -> Model | BaseModel | None:
        """The object after this chunk, which is reported; None where it brings nothing new. The last chunk has `raw`."""
        output = self._whole(chunk) if chunk.raw is not None else self._reader.partial(chunk.message.content or "")
        if output is not None:
            dispatcher.event(events.LLMStructuredPredictInProgressEvent(output=output))
        return output
