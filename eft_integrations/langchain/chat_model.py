"""`EFTChatModel`: a trio behind LangChain's chat model interface.

Reward weights reach the engine from, in order of precedence: the call (`reward_weights=`), the surrounding
`eft_integrations.weights(...)` block, `config={"configurable": {"eft_reward_weights": ...}}`, the model's own field, the pairs.
They are settled when the call is made, so that a stream that is read later keeps the weights of its call.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from itertools import chain
from typing import Any, Literal, TypeVar, cast

from langchain_core import exceptions, output_parsers
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput, LanguageModelOutput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.outputs import ChatResult as LangChainResult
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from langchain_core.runnables.base import RunnableSerializable
from langchain_core.runnables.utils import AnyConfigurableField
from langchain_core.tools import BaseTool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from eft_engine import errors
from eft_engine.config import RewardWeights
from eft_integrations.call_options import CallOptions
from eft_integrations.chat.request import ChatRequest
from eft_integrations.json_types import JsonObject
from eft_integrations.langchain import convert
from eft_integrations.langchain.schemas import answer_schema, traced_schema
from eft_integrations.langchain.streams import Chunks
from eft_integrations.langchain.structured import structured
from eft_integrations.question import Question
from eft_integrations.sampling import stops_of
from eft_integrations.trio_model import NAMES_OF_TRIO, TrioModel
from eft_integrations.weights import settle
from eft_integrations.wire.openai import schema_format

WEIGHTS_KEY = "eft_reward_weights"
"""Key of `config["configurable"]` that carries weights."""

NOT_ASKED = frozenset({"stream_usage", "ls_structured_output_format"})
"""Keywords of a call that say nothing to a model."""

LANGCHAINS_ERRORS: dict[type[Exception], type[exceptions.LangChainException]] = {
    TimeoutError: exceptions.ModelTimeoutError,
    errors.ContextOverflowError: exceptions.ContextOverflowError,
    errors.ModelNotFoundError: exceptions.ModelNotFoundError,
    errors.QueueFullError: exceptions.ModelRateLimitError,
    errors.RequestError: exceptions.ModelInvalidRequestError,
    errors.ConfigurationError: exceptions.ModelInvalidRequestError,
    errors.GenerationError: exceptions.ModelAPIError,
}
"""The first kind that an error of the engine is of decides."""

Method = TypeVar("Method", bound=Callable[..., object])


def _settling(method: Method) -> Method:
    """A method of LangChain's chat models that settles the weights when it is called, and goes on as before."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def call(llm: EFTChatModel, /, *args: object, **keywords: object) -> object:
        config = signature.bind(llm, *args, **keywords).arguments.get("config")
        return method(llm, *args, **llm._settle_weights(config, keywords))

    @functools.wraps(method)
    async def acall(llm: EFTChatModel, /, *args: object, **keywords: object) -> object:
        return await call(llm, *args, **keywords)  # type: ignore[misc]

    return cast("Method", acall if inspect.iscoroutinefunction(method) else call)


class EFTChatModel(TrioModel, BaseChatModel):
    """A base model with the behaviour of small tuned pairs, as a LangChain chat model; see `TrioModel` for its fields.

    Every field of `CallOptions` is also a keyword of a call. An unknown keyword is an error.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    max_retries: int | None = Field(default=None, description="accepted for compatibility; local calls are not retried")
    streaming: bool = Field(default=False, description="invoke streams inside, so that callbacks see tokens")

    _weights_ids: tuple[str, ...] = PrivateAttr(default=(WEIGHTS_KEY,))

    # ---- what LangChain asks about a model -----------------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "eft"

    @property
    def _identifying_params(self) -> dict[str, object]:
        """Everything that changes an answer, so that caches never mix two models or two weights."""
        names = (*NAMES_OF_TRIO, "engine_config", *sorted(set(CallOptions.model_fields) - {"timeout"}))
        own = {name: getattr(self, name) for name in names}
        return {"model_name": self.model_name, "backend": self._backend.identity, **own}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: object) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or stops_of(self), **kwargs)
        params["ls_provider"] = "eft"
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        """What agents may rely on. The context length is told once the engine is loaded; a profile does not load it."""
        profile = ModelProfile(
            text_inputs=True,
            text_outputs=True,
            tool_calling=True,
            tool_choice=True,
            tool_call_streaming=True,
            structured_output=True,
            reasoning_output=True,
        )
        if self._is_loaded:
            profile["max_input_tokens"] = self._backend.context_len
        return profile

    get_token_ids = TrioModel.token_ids

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[object] | None = None) -> int:
        """Prompt tokens of a conversation as the chat template renders it."""
        request = ChatRequest(messages=convert.to_messages(messages), tools=convert.to_tools(tools or []))
        with _translated():
            return self._backend.count_prompt_tokens(request)

    # ---- weights -------------------------------------------------------------------------------------------------------

    def _settle_weights(self, config: RunnableConfig | None, keywords: Mapping[str, object]) -> dict[str, object]:
        """The keywords with the weights that the call, the surrounding block or the config ask for."""
        configurable = ensure_config(config).get("configurable", {})
        return settle(keywords, *(configurable.get(key) for key in self._weights_ids))

    invoke = _settling(BaseChatModel.invoke)
    ainvoke = _settling(BaseChatModel.ainvoke)
    stream = _settling(BaseChatModel.stream)
    astream = _settling(BaseChatModel.astream)
    stream_events = _settling(BaseChatModel.stream_events)
    astream_events = _settling(BaseChatModel.astream_events)
    generate = _settling(BaseChatModel.generate)
    agenerate = _settling(BaseChatModel.agenerate)

    def bind(self, **kwargs: object) -> Runnable[LanguageModelInput, AIMessage]:  # type: ignore[override]
        """See `Runnable.bind`. Weights go into the model itself, where `bind_tools` and agents do not lose them."""
        weights = cast("RewardWeights", kwargs.pop("reward_weights", None))
        return super(EFTChatModel, self if weights is None else self.with_weights(weights)).bind(**kwargs)

    def configurable_fields(
        self, **kwargs: AnyConfigurableField
    ) -> RunnableSerializable[LanguageModelInput, AIMessage]:
        """See `Runnable.configurable_fields`. A configurable `reward_weights` also reaches models that tools were bound to."""
        model = self
        if field := kwargs.get("reward_weights"):
            model = self.model_copy()
            model._weights_ids = (*self._weights_ids, field.id)
        return super(EFTChatModel, model).configurable_fields(**kwargs)

    # ---- answers -------------------------------------------------------------------------------------------------------

    def _question(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, keywords: Mapping[str, object]
    ) -> Question:
        """What is asked, checked.

        Raises:
            ModelInvalidRequestError: an unknown keyword, or a value that cannot be used.
        """
        asked = {name: value for name, value in keywords.items() if name not in NOT_ASKED}
        try:
            asked["tools"] = convert.openai_tools(cast("Sequence[object]", asked.get("tools") or ()))
            asked["response_format"] = convert.openai_format(asked.get("response_format"))
            return self._ask(convert.to_messages(messages), {**asked, "stop": stop})
        except ValueError as error:
            raise exceptions.ModelInvalidRequestError(str(error)) from error

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: object,
    ) -> LangChainResult:
        with _translated():
            question = self._question(messages, stop, kwargs)
            return convert.to_result(question.answer(), question.model_name)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: object,
    ) -> LangChainResult:
        with _translated():
            question = self._question(messages, stop, kwargs)
            return convert.to_result(await question.aanswer(), question.model_name)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: object,
    ) -> Iterator[ChatGenerationChunk]:
        with _translated():
            question = self._question(messages, stop, kwargs)
            with closing(question.stream(self._chunks(question).feed)) as pieces:
                for chunk in chain.from_iterable(pieces):
                    if run_manager:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: object,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with _translated():
            question = self._question(messages, stop, kwargs)
            async with aclosing(question.astream(self._chunks(question).feed)) as pieces:
                async for chunks in pieces:
                    for chunk in chunks:
                        if run_manager:
                            await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk

    def _chunks(self, question: Question) -> Chunks:
        return Chunks(question.model_name, in_blocks=self.output_version == "v1")

    # ---- tools and structured output -----------------------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[Mapping[str, object] | type | Callable[..., object] | BaseTool],
        *,
        tool_choice: str | bool | Mapping[str, object] | None = None,
        strict: bool | None = None,
        **kwargs: object,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call tools.

        Args:
            tools: functions, LangChain tools, pydantic classes, TypedDicts or JSON schemas.
            tool_choice: auto, none, any or required, a tool's name, or OpenAI's mapping. A demanded call is guaranteed: no other
                text can be generated.
            strict: refuse a tool whose schema has a keyword that no mask can hold. Otherwise the rest of the schema is checked when
                a call is whole.
            kwargs: further keywords of the call; `parallel_tool_calls=False` allows at most one call per answer.
        """
        return self.bind(tools=convert.openai_tools(tools, strict=strict), tool_choice=tool_choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: object,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Answers as objects of a schema, which masks guarantee for each method.

        An answer that is not whole (`max_tokens` ended it) or breaks the schema in what no mask can hold is an
        `OutputParserException`, which a stream raises at its end.

        Args:
            schema: a pydantic class (v1 or v2), a TypedDict, or a JSON schema; `json_mode` works without.
            method: decode under the schema, as a forced tool call, or (json_mode) under the schema if there is one and as any
                JSON object if not.
            include_raw: return `{"raw", "parsed", "parsing_error"}` and do not raise on parsing errors.
            strict: refuse a schema with a keyword that no mask can hold. Otherwise the rest is checked when the answer is whole.
            kwargs: further keywords of the call.
        """
        if schema is None and method != "json_mode":
            raise ValueError(f"method {method!r} needs a schema")
        is_pydantic = isinstance(schema, type) and is_basemodel_subclass(schema)
        traced: JsonObject = {"type": "object"} if schema is None else traced_schema(schema)
        kwargs["ls_structured_output_format"] = {"kwargs": {"method": method, "strict": strict}, "schema": traced}
        parser: Runnable[LanguageModelOutput, Any]
        name: str | None = None
        match method:
            case "function_calling":
                tools = cast("list[type[BaseModel]]", [schema])
                name = str(traced["title"])
                llm = self.bind_tools(tools, tool_choice=name, parallel_tool_calls=False, strict=strict, **kwargs)
                parser = output_parsers.JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
                if is_pydantic:
                    parser = output_parsers.PydanticToolsParser(tools=[*tools], first_tool_only=True)
            case "json_schema" | "json_mode":
                if strict is not None:
                    kwargs["strict"] = strict
                wanted = {"title": "answer", "type": "object"} if schema is None else answer_schema(schema)
                llm = self.bind(response_format=schema_format(str(wanted["title"]), wanted), **kwargs)
                parser = output_parsers.JsonOutputParser()
                if is_pydantic:
                    parser = output_parsers.PydanticOutputParser(pydantic_object=cast("type[BaseModel]", schema))
            case _:
                raise ValueError(f"method must be json_schema, function_calling or json_mode, got {method!r}")
        return structured(llm, parser, tool=name, include_raw=include_raw)


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of the engine as LangChain's own; the original is their cause."""
    try:
        yield
    except tuple(LANGCHAINS_ERRORS) as error:
        found = next(own for kind, own in LANGCHAINS_ERRORS.items() if isinstance(error, kind))
        raise found(str(error)) from error
