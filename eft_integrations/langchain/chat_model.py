"""`EFTChatModel`: a trio behind LangChain's chat model interface.

Reward weights reach the engine from, in order of precedence: the call (`reward_weights=`), the surrounding
`eft_integrations.weights(...)` block, `config={"configurable": {"eft_reward_weights": ...}}`, the model's own field, the pairs.
They are settled when the call is made, so that a stream that is read later keeps the weights of its call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from operator import itemgetter
from typing import Any, Literal, cast

from langchain_core import exceptions
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers import (
    JsonOutputKeyToolsParser,
    JsonOutputParser,
    PydanticOutputParser,
    PydanticToolsParser,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk
from langchain_core.outputs import ChatResult as LangChainResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableMap, RunnablePassthrough, ensure_config
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import ConfigDict, Field, PrivateAttr

from eft_engine import errors
from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.langchain import convert
from eft_integrations.trio_model import (
    FIELDS_OF_SAMPLING,
    NAMES_OF_TRIO,
    TrioModel,
    astream_within,
    stream_within,
)
from eft_integrations.weights import settle

WEIGHTS_KEY = "eft_reward_weights"
"""Key of `config["configurable"]` that carries weights."""

NOT_ASKED = frozenset({"tools", "response_format", "strict", "timeout", "stream_usage", "ls_structured_output_format"})
"""Keywords of a call that say nothing to the engine, or that are converted first."""


class EFTChatModel(TrioModel, BaseChatModel):
    """A base model with the behaviour of small tuned pairs, as a LangChain chat model.

    Name the trio by `preset`, by `base` with `tuned` and `reference`, by `base` with `pairs`, or hand over an `engine` or a
    `backend`. The engine is loaded when it is first needed and shared by all models of the process that name the same trio.
    Every field from `reward_weights` on is also a keyword of a call.
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
    def _identifying_params(self) -> dict[str, Any]:
        """Everything that changes an answer, so that caches never mix two models or two weights."""
        return {
            "model_name": self.model_name,
            **{name: getattr(self, name) for name in (*NAMES_OF_TRIO, "engine_config")},
            "backend": self._backend.identity,
            "reward_weights": self.reward_weights,
            **{name: getattr(self, name) for name in (*FIELDS_OF_SAMPLING, "stop", "logprobs", "top_logprobs")},
            "chat_template_kwargs": self.chat_template_kwargs,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider="eft", ls_model_name=kwargs.get("model") or self.model_name, ls_model_type="chat"
        )
        if (temperature := kwargs.get("temperature", self.temperature)) is not None:
            params["ls_temperature"] = temperature
        if (max_tokens := kwargs.get("max_tokens", self.max_tokens)) is not None:
            params["ls_max_tokens"] = max_tokens
        if stopped := stop or self.stop:
            params["ls_stop"] = stopped
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
        )
        if getattr(self._backend, "is_loaded", True):
            profile["max_input_tokens"] = self._backend.context_len
        return profile

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of a text, by the base's tokenizer."""
        return self._backend.token_ids(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Prompt tokens of a conversation as the chat template renders it."""
        request = ChatRequest(messages=convert.to_messages(messages), tools=convert.to_tools(tools or []))
        with _translated():
            return self._backend.count_prompt_tokens(request)

    # ---- weights -------------------------------------------------------------------------------------------------------

    def _settle_weights(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """`kwargs` with the weights that the call, the surrounding block or the config ask for."""
        configurable = ensure_config(config).get("configurable", {})
        return settle(kwargs, *(configurable.get(key) for key in self._weights_ids))

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """See `BaseChatModel.invoke`; the weights are settled here."""
        return super().invoke(input, config, stop=stop, **self._settle_weights(config, kwargs))

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """See `BaseChatModel.ainvoke`; the weights are settled here."""
        return await super().ainvoke(input, config, stop=stop, **self._settle_weights(config, kwargs))

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """See `BaseChatModel.stream`; the weights are settled here."""
        return super().stream(input, config, stop=stop, **self._settle_weights(config, kwargs))

    def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """See `BaseChatModel.astream`; the weights are settled here."""
        return super().astream(input, config, stop=stop, **self._settle_weights(config, kwargs))

    def stream_events(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """See `BaseChatModel.stream_events`; the weights are settled here."""
        return super().stream_events(input, config, **self._settle_weights(config, kwargs))

    def astream_events(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """See `BaseChatModel.astream_events`; the weights are settled here."""
        return super().astream_events(input, config, **self._settle_weights(config, kwargs))

    def generate(
        self, messages: list[list[BaseMessage]], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> Any:
        """See `BaseChatModel.generate`; the weights are settled here."""
        return super().generate(messages, stop, callbacks, **self._settle_weights(None, kwargs))

    async def agenerate(
        self, messages: list[list[BaseMessage]], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> Any:
        """See `BaseChatModel.agenerate`; the weights are settled here."""
        return await super().agenerate(messages, stop, callbacks, **self._settle_weights(None, kwargs))

    def bind(self, **kwargs: Any) -> Any:
        """See `Runnable.bind`. Weights go into the model itself, where `bind_tools` and agents do not lose them."""
        weights = kwargs.pop("reward_weights", None)
        return super(EFTChatModel, self if weights is None else self.with_weights(weights)).bind(**kwargs)

    def configurable_fields(self, **kwargs: Any) -> Any:
        """See `Runnable.configurable_fields`. A configurable `reward_weights` also reaches models that tools were bound to."""
        model = self
        if field := kwargs.get("reward_weights"):
            model = self.model_copy()
            model._weights_ids = (*self._weights_ids, field.id)
        return super(EFTChatModel, model).configurable_fields(**kwargs)

    # ---- requests ------------------------------------------------------------------------------------------------------

    def _request(self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]) -> ChatRequest:
        """What is asked, checked.

        Raises:
            ModelInvalidRequestError: an unknown keyword, or a value that cannot be used.
        """
        try:
            keywords = {name: value for name, value in kwargs.items() if name not in NOT_ASKED}
            return self._ask(
                convert.to_messages(messages),
                {**keywords, "stop": stop},
                tools=convert.to_tools(kwargs.get("tools") or []),
                response_schema=convert.to_response_schema(kwargs.get("response_format")),
            )
        except ValueError as error:
            raise exceptions.ModelInvalidRequestError(str(error)) from error

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LangChainResult:
        result = None
        for delta in self._deltas(messages, stop, kwargs):
            if run_manager and delta.text and self.streaming:
                run_manager.on_llm_new_token(delta.text)
            result = delta.result
        return self._as_result(result, kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LangChainResult:
        result = None
        async for delta in self._adeltas(messages, stop, kwargs):
            if run_manager and delta.text and self.streaming:
                await run_manager.on_llm_new_token(delta.text)
            result = delta.result
        return self._as_result(result, kwargs)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for delta in self._deltas(messages, stop, kwargs):
            chunk = self._as_chunk(delta, kwargs)
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for delta in self._adeltas(messages, stop, kwargs):
            chunk = self._as_chunk(delta, kwargs)
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _deltas(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> Iterator[ChatDelta]:
        with _translated():
            request = self._request(messages, stop, kwargs)
            yield from stream_within(self._backend, request, kwargs.get("timeout", self.timeout))

    async def _adeltas(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> AsyncIterator[ChatDelta]:
        with _translated():
            request = self._request(messages, stop, kwargs)
            async with aclosing(astream_within(self._backend, request, kwargs.get("timeout", self.timeout))) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    yield delta

    def _as_result(self, result: ChatResult | None, kwargs: dict[str, Any]) -> LangChainResult:
        assert result is not None, "the last piece of a stream carries the result"
        message = convert.to_ai_message(result, kwargs.get("model") or self.model_name)
        info = {"finish_reason": result.finish_reason}
        return LangChainResult(generations=[ChatGeneration(message=message, generation_info=info)])

    def _as_chunk(self, delta: Any, kwargs: dict[str, Any]) -> ChatGenerationChunk:
        if delta.result is None:
            return ChatGenerationChunk(message=AIMessageChunk(**convert.to_chunk_fields(delta)))
        last = AIMessageChunk(
            content="",
            usage_metadata=convert.usage_metadata(delta.result),
            response_metadata=convert.response_metadata(delta.result, kwargs.get("model") or self.model_name),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=last)

    # ---- tools and structured output -----------------------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | Any],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call tools.

        Args:
            tools: functions, LangChain tools, pydantic classes, TypedDicts or JSON schemas.
            tool_choice: auto, none, any or required, a tool's name, or OpenAI's mapping. A demanded call is guaranteed: no other
                text can be generated.
            parallel_tool_calls: False: at most one call per answer.
            strict: accepted; calls always follow their schema.
            kwargs: further keywords of the call.
        """
        formatted = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        bound: Runnable[LanguageModelInput, AIMessage] = self.bind(tools=formatted, **kwargs)
        return bound

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers as objects of a schema, which masks guarantee for each method.

        Args:
            schema: a pydantic class (v1 or v2), a TypedDict, or a JSON schema; `json_mode` works without.
            method: decode under the schema, as a forced tool call, or (json_mode) under the schema if there is one and as any
                JSON object if not.
            include_raw: return `{"raw", "parsed", "parsing_error"}` and do not raise on parsing errors.
            strict: accepted; the schema is always followed.
            kwargs: further keywords of the call.
        """
        if schema is None and method != "json_mode":
            raise ValueError(f"method {method!r} needs a schema")
        is_pydantic = isinstance(schema, type) and is_basemodel_subclass(schema)
        json_schema = {"type": "object"} if schema is None else convert_to_json_schema(schema)
        options = {"method": method, **({} if strict is None else {"strict": strict})}
        described = {"kwargs": options, "schema": json_schema}
        parser: Any
        match method:
            case "function_calling":
                assert schema is not None
                name = convert_to_openai_tool(schema)["function"]["name"]
                llm = self.bind_tools(
                    [schema],
                    tool_choice=name,
                    parallel_tool_calls=False,
                    strict=strict,
                    ls_structured_output_format=described,
                    **kwargs,
                )
                parser = (
                    PydanticToolsParser(tools=[schema], first_tool_only=True)  # type: ignore[list-item]
                    if is_pydantic
                    else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
                )
            case "json_schema" | "json_mode":
                wanted = {
                    "type": "json_schema",
                    "json_schema": {"name": json_schema.get("title", "answer"), "schema": json_schema},
                }
                llm = self.bind(response_format=wanted, ls_structured_output_format=described, **kwargs)
                parser = JsonOutputParser()
                if is_pydantic:
                    parser = PydanticOutputParser(pydantic_object=cast("Any", schema))
            case _:
                raise ValueError(f"method must be json_schema, function_calling or json_mode, got {method!r}")
        chain: Runnable[LanguageModelInput, Any] = llm | parser
        if not include_raw:
            return chain
        parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of the engine as LangChain's own; the original is their cause."""
    try:
        yield
    except TimeoutError as error:
        raise exceptions.ModelTimeoutError(str(error)) from error
    except errors.ContextOverflowError as error:
        raise exceptions.ContextOverflowError(str(error)) from error
    except errors.ModelNotFoundError as error:
        raise exceptions.ModelNotFoundError(str(error)) from error
    except errors.QueueFullError as error:
        raise exceptions.ModelRateLimitError(str(error)) from error
    except (errors.RequestError, errors.ConfigurationError) as error:
        raise exceptions.ModelInvalidRequestError(str(error)) from error
    except errors.GenerationError as error:
        raise exceptions.ModelAPIError(str(error)) from error
