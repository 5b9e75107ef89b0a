"""`EFTLLM`: a trio behind LlamaIndex's interface of function-calling LLMs.

Reward weights reach the engine from, in order of precedence: the call (`reward_weights=`), the surrounding
`eft_integrations.weights(...)` block, the LLM's own field, the pairs. They are settled when the call is made, so that a stream
that is read later keeps the weights of its call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictInProgressEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.tools.types import BaseTool
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json

from eft_integrations.chat.request import DEFAULT_MAX_TOKENS, ChatDelta, ChatRequest, ChatResult
from eft_integrations.llama_index import convert
from eft_integrations.llama_index.structured import PartialObjects, response_format, whole_object
from eft_integrations.trio_model import TrioModel, astream_within, stream_within
from eft_integrations.weights import settle
from eft_integrations.wire import openai as openai_wire

Model = TypeVar("Model", bound=BaseModel)

NOT_ASKED = frozenset({"tools", "response_format", "timeout"})
"""Keywords of a call that are converted first, or that say nothing to the engine."""

NOT_STRUCTURED = frozenset({"tools", "tool_required", "tool_choice", "allow_parallel_tool_calls"})
"""Keywords without meaning where the answer is JSON of a schema; LlamaIndex's programs drop them too."""

dispatcher = get_dispatcher(__name__)


class EFTLLM(TrioModel, FunctionCallingLLM):
    """A base model with the behaviour of small tuned pairs, as a LlamaIndex LLM that calls tools.

    Every field from `reward_weights` on is also a keyword of every call; further keywords of a call are `tools` (OpenAI's form),
    `tool_choice`, `parallel_tool_calls`, `response_format` (OpenAI's form), `documents` and `model` (`name@pair=0.5`). An unknown
    keyword is an error.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    @classmethod
    def class_name(cls) -> str:
        """What serialised settings call this class."""
        return "EFTLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex may rely on. The context window is the engine's, so asking for it loads the engine; see `load`."""
        return LLMMetadata(
            context_window=self._backend.context_len,
            num_output=self.max_tokens or DEFAULT_MAX_TOKENS,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.model_name,
        )

    def to_payload(self) -> dict[str, Any]:
        """What instrumentation events say of this LLM; does not load the engine."""
        return {"class_name": self.class_name(), "model_name": self.model_name, "reward_weights": self.reward_weights}

    def load(self) -> None:
        """Load the engine now instead of when it is first needed. In a coroutine: `await asyncio.to_thread(llm.load)`."""
        _ = self._backend.context_len

    async def _aload(self) -> None:
        if not getattr(self._backend, "is_loaded", True):
            await asyncio.to_thread(self.load)

    def token_ids(self, text: str) -> list[int]:
        """The text as tokens of the base's tokenizer: for `Settings.tokenizer` and `TokenCountingHandler(tokenizer=...)`."""
        return self._backend.token_ids(text)

    # ---- requests ------------------------------------------------------------------------------------------------------

    def _request(
        self, messages: Sequence[ChatMessage], keywords: Mapping[str, Any], *, prompt: str | None = None
    ) -> ChatRequest:
        asked = {name: value for name, value in keywords.items() if name not in NOT_ASKED}
        return self._ask(
            convert.to_messages(messages),
            settle(asked),
            tools=convert.to_tools(keywords.get("tools") or ()),
            response_schema=openai_wire.to_response_schema(keywords.get("response_format")),
            prompt=prompt,
        )

    def _completion_request(self, prompt: str, formatted: bool, keywords: Mapping[str, Any]) -> ChatRequest:
        """A text is what the user says; one that is formatted already is continued as it stands."""
        if formatted:
            return self._request((), keywords, prompt=prompt)
        return self._request([ChatMessage(role=MessageRole.USER, content=prompt)], keywords)

    def _deltas(self, request: ChatRequest, keywords: Mapping[str, Any]) -> Iterator[ChatDelta]:
        return stream_within(self._backend, request, keywords.get("timeout", self.timeout))

    def _adeltas(self, request: ChatRequest, keywords: Mapping[str, Any]) -> AsyncIterator[ChatDelta]:
        return astream_within(self._backend, request, keywords.get("timeout", self.timeout))

    def _result(self, request: ChatRequest, keywords: Mapping[str, Any]) -> ChatResult:
        return _last([delta.result for delta in self._deltas(request, keywords)])

    async def _aresult(self, request: ChatRequest, keywords: Mapping[str, Any]) -> ChatResult:
        return _last([delta.result async for delta in self._adeltas(request, keywords)])

    # ---- chat and completion -------------------------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The whole answer."""
        return convert.to_chat_response(self._result(self._request(messages, kwargs), kwargs), self.model_name)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The whole answer, without blocking the event loop."""
        result = await self._aresult(self._request(messages, kwargs), kwargs)
        return convert.to_chat_response(result, self.model_name)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The answer in pieces; the request is submitted now, and closing the generator cancels it."""
        request = self._request(messages, kwargs)
        return _chunks(self._deltas(request, kwargs), convert.ChatChunks(self.model_name))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """The answer in pieces, without blocking the event loop; closing the generator cancels the request."""
        request = self._request(messages, kwargs)
        return _achunks(self._adeltas(request, kwargs), convert.ChatChunks(self.model_name))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to a text as the user's turn, or, where it is `formatted` already, its continuation."""
        request = self._completion_request(prompt, formatted, kwargs)
        return convert.to_completion_response(self._result(request, kwargs), self.model_name)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """See `complete`; without blocking the event loop."""
        request = self._completion_request(prompt, formatted, kwargs)
        return convert.to_completion_response(await self._aresult(request, kwargs), self.model_name)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """See `complete`, in pieces; the request is submitted now."""
        request = self._completion_request(prompt, formatted, kwargs)
        return _chunks(self._deltas(request, kwargs), convert.CompletionChunks(self.model_name))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """See `complete`, in pieces; without blocking the event loop."""
        request = self._completion_request(prompt, formatted, kwargs)
        return _achunks(self._adeltas(request, kwargs), convert.CompletionChunks(self.model_name))

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """See `LLM.apredict`, which asks for `metadata`: the engine is loaded beside the event loop first."""
        await self._aload()
        return await super().apredict(prompt, **prompt_args)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> Any:
        """See `LLM.astream` and `apredict`."""
        await self._aload()
        return await super().astream(prompt, **prompt_args)

    # ---- tools ---------------------------------------------------------------------------------------------------------

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Keywords of the chat call; the history is copied, never added to. A demanded call is guaranteed by the grammar."""
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        choice = kwargs.pop("tool_choice", None)
        return {
            "messages": [*(chat_history or ()), *((user_msg,) if user_msg is not None else ())],
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools or ()],
            "tool_choice": "required" if choice is None and tool_required else choice,
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of an answer; of a streamed one that is not over, with the arguments so far.

        Raises:
            ValueError: there is none, and `error_on_no_tool_call`.
        """
        calls = [
            ToolSelection(tool_id=block.tool_call_id or "", tool_name=block.tool_name, tool_kwargs=_arguments(block))
            for block in response.message.blocks
            if isinstance(block, ToolCallBlock)
        ]
        if not calls and error_on_no_tool_call:
            broken = response.message.additional_kwargs.get("invalid_tool_calls") or ()
            reasons = "".join(f"; a call was begun, but {call['reason']}: {call['text']!r}" for call in broken)
            raise ValueError(f"the answer calls no tool: {response.message.content!r}{reasons}")
        return calls

    # ---- structured output ---------------------------------------------------------------------------------------------

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """An object of a pydantic class, decoded under its schema whatever the `pydantic_program_mode`.

        Args:
            output_cls: the class.
            prompt: the question.
            llm_kwargs: keywords of the call, `reward_weights` among them.
            prompt_args: variables of the prompt.

        Raises:
            ValueError: `max_tokens` does not hold the object.
        """
        dispatcher.event(_started(output_cls, prompt, prompt_args))
        response = self.chat(**self._structured_call(output_cls, prompt, llm_kwargs, prompt_args))
        return _ended(whole_object(output_cls, response))

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """See `structured_predict`; without blocking the event loop."""
        dispatcher.event(_started(output_cls, prompt, prompt_args))
        response = await self.achat(**self._structured_call(output_cls, prompt, llm_kwargs, prompt_args))
        return _ended(whole_object(output_cls, response))

    def stream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        """The object as it grows; the last one is whole. The request is submitted now."""
        dispatcher.event(_started(output_cls, prompt, prompt_args))
        chunks = self.stream_chat(**self._structured_call(output_cls, prompt, llm_kwargs, prompt_args))
        return _objects(chunks, PartialObjects(output_cls))

    async def astream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        """See `stream_structured_predict`; without blocking the event loop."""
        dispatcher.event(_started(output_cls, prompt, prompt_args))
        chunks = await self.astream_chat(**self._structured_call(output_cls, prompt, llm_kwargs, prompt_args))
        return _aobjects(chunks, PartialObjects(output_cls))

    def _structured_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: Mapping[str, Any] | None,
        prompt_args: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Keywords of the chat call behind a structured prediction."""
        keywords = {name: value for name, value in (llm_kwargs or {}).items() if name not in NOT_STRUCTURED}
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        return {"messages": messages, "response_format": response_format(output_cls), **keywords}


def _last(results: Sequence[ChatResult | None]) -> ChatResult:
    result = results[-1]
    assert result is not None, "the last piece of a stream carries the result"
    return result


def _chunks(deltas: Iterator[ChatDelta], chunks: Any) -> Generator[Any, None, None]:
    try:
        for delta in deltas:
            yield chunks.feed(delta)
    finally:
        deltas.close()  # type: ignore[attr-defined]


async def _achunks(deltas: AsyncIterator[ChatDelta], chunks: Any) -> AsyncGenerator[Any, None]:
    async with aclosing(deltas):  # type: ignore[type-var]
        async for delta in deltas:
            yield chunks.feed(delta)


def _arguments(block: ToolCallBlock) -> dict[str, Any]:
    if isinstance(block.tool_kwargs, dict):
        return block.tool_kwargs
    try:
        value = from_json(block.tool_kwargs, allow_partial="trailing-strings")
    except ValueError:  # nothing yet, or cut where no part of it can be read
        return {}
    return value if isinstance(value, dict) else {}


# ---- events of structured predictions ------------------------------------------------------------------------------------


def _started(
    output_cls: type[BaseModel], prompt: BasePromptTemplate, prompt_args: dict[str, Any]
) -> LLMStructuredPredictStartEvent:
    return LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)


def _ended(output: Model) -> Model:
    dispatcher.event(LLMStructuredPredictEndEvent(output=output))
    return output


def _objects(chunks: Iterator[ChatResponse], partial: PartialObjects[Any]) -> Generator[Any, None, None]:
    output: Any = None
    for chunk in chunks:
        if (output := partial.feed(chunk)) is not None:
            dispatcher.event(LLMStructuredPredictInProgressEvent(output=output))
            yield output
    _ended(output)


async def _aobjects(chunks: AsyncIterator[ChatResponse], partial: PartialObjects[Any]) -> AsyncGenerator[Any, None]:
    output: Any = None
    async for chunk in chunks:
        if (output := partial.feed(chunk)) is not None:
            dispatcher.event(LLMStructuredPredictInProgressEvent(output=output))
            yield output
    _ended(output)
