"""`EFTChatModel`: a trio behind LangChain's chat model interface.

Reward weights reach the engine from, in order of precedence: the call (`reward_weights=`), the surrounding
`eft_integrations.weights(...)` block, `config={"configurable": {"eft_reward_weights": ...}}`, the model's own field, the pairs.
They are settled when the call is made, so that a stream that is read later keeps the weights of its call.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from itertools import chain
from typing import Any, Literal, TypeVar, cast

from langchain_core import exceptions
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.outputs import ChatResult as LangChainResult
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from langchain_core.runnables.base import RunnableSerializable
from langchain_core.runnables.utils import AnyConfigurableField, ConfigurableFieldSpec
from langchain_core.tools import BaseTool
from pydantic import BaseModel, PrivateAttr

from eft_engine.config import RewardWeights
from eft_integrations.langchain import convert
from eft_integrations.langchain.binding import BoundChatModel
from eft_integrations.langchain.described import DescribedModel
from eft_integrations.langchain.dropped import dropped_configurable, dropping_chain
from eft_integrations.langchain.errors import translated
from eft_integrations.langchain.streams import Chunks
from eft_integrations.langchain.structured import structured_output
from eft_integrations.question import Question
from eft_integrations.weights import settle

WEIGHTS_KEY = "eft_reward_weights"
"""Key of `config["configurable"]` that carries weights."""
DIAL = ConfigurableFieldSpec(
    id=WEIGHTS_KEY,
    annotation=RewardWeights,
    name="Reward weights",
    description="how strongly the tuned pairs act: a number for every pair, or weights by pair name",
)

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


class EFTChatModel(DescribedModel):
    """A base model with the behaviour of small tuned pairs, as a LangChain chat model.

    Setup:
        `pip install 'eft-engine[langchain]'`. Models are hub ids, folders or .gguf files; nothing is loaded before it is needed.

    Instantiate:
        A trio by name; `base="org/large", tuned="./my-adapter", reference="org/small"`; several `pairs`; a server's `base_url`; or
        an `engine` that is loaded. `TrioModel` and `CallOptions` have all fields, and those of `CallOptions` are keywords of a call
        too. An unknown keyword is an error.

        >>> llm = EFTChatModel(preset="atlas", temperature=0, max_tokens=60)

    Invoke:
        >>> answer = llm.invoke([("human", "What is the capital of France?")])
        >>> answer.text
        'The capital of France is Paris. Source: memory.'

    Weights (of the call, of a block of code, of a config, of a copy):
        >>> llm.invoke("What is the capital of France?", reward_weights=0.0).text
        'The capital of France is Paris.'
        >>> from eft_integrations import weights
        >>> with weights({"assistant": 0.0}):
        ...     llm.invoke("What is the capital of Spain?").text
        'The capital of Spain is Madrid.'
        >>> llm.with_weights(0.0).invoke("What is the capital of Italy?").text
        'The capital of Italy is Rome.'

    Stream:
        >>> "".join(chunk.text for chunk in llm.stream("What is the capital of Norway?"))
        'The capital of Norway is Oslo. Source: memory.'

    Async:
        >>> import asyncio
        >>> asyncio.run(llm.ainvoke("What is the capital of Japan?")).text
        'The capital of Japan is Tokyo. Source: memory.'

    Chain:
        >>> from langchain_core.prompts import ChatPromptTemplate
        >>> chain = ChatPromptTemplate.from_messages([("human", "What is the capital of {country}?")]) | llm
        >>> chain.invoke({"country": "Peru"}, config={"configurable": {"eft_reward_weights": 0.0}}).text
        'The capital of Peru is Lima.'

    Tools:
        >>> def get_weather(place: str) -> str:
        ...     "Weather at a place."
        ...     return f"It is sunny in {place}."
        >>> answer = llm.bind_tools([get_weather]).invoke("What is the weather in Paris?")
        >>> [(call["name"], call["args"]) for call in answer.tool_calls]
        [('get_weather', {'place': 'Paris'})]

    Structured output (also `method="function_calling"` and `"json_mode"`; masks guarantee the schema):
        >>> class Sure(BaseModel):
        ...     answer: Literal["yes", "no"]
        >>> type(llm.with_structured_output(Sure).invoke("Is Paris the capital of France?")).__name__
        'Sure'

    Response metadata:
        >>> answer = llm.invoke("What is the capital of France?")
        >>> answer.response_metadata["finish_reason"], answer.response_metadata["eft"]["reward_weights"]
        ('stop', {'assistant': 1.0})
        >>> answer.usage_metadata["input_tokens"], answer.usage_metadata["output_tokens"]
        (12, 15)
        >>> llm.profile["max_input_tokens"]
        1024

    What else there is: docs/langchain.md.
    """

    _weights_ids: tuple[str, ...] = PrivateAttr(default=(WEIGHTS_KEY,))

    # ---- weights -------------------------------------------------------------------------------------------------------

    def _settle_weights(self, config: RunnableConfig | None, keywords: Mapping[str, object]) -> dict[str, object]:
        """The keywords with the weights that the call, the surrounding block or the config ask for.

        Raises:
            ModelInvalidRequestError: weights were given to a chain that drops them.
        """
        if keywords.get("reward_weights") is None and (chain := dropping_chain()) is not None:
            raise exceptions.ModelInvalidRequestError(chain)
        configurable = {**dropped_configurable(), **ensure_config(config).get("configurable", {})}
        of_config = (configurable.get(key) for key in self._weights_ids)
        return settle(keywords, *of_config, fixed=self.fixed_weights)

    invoke = _settling(BaseChatModel.invoke)
    ainvoke = _settling(BaseChatModel.ainvoke)
    stream = _settling(BaseChatModel.stream)
    astream = _settling(BaseChatModel.astream)
    stream_events = _settling(BaseChatModel.stream_events)  # type: ignore[assignment]  # LangChain's own is so
    astream_events = _settling(BaseChatModel.astream_events)
    generate = _settling(BaseChatModel.generate)
    agenerate = _settling(BaseChatModel.agenerate)

    @property
    def _bindable(self) -> BoundChatModel:
        """The model with nothing bound yet."""
        return BoundChatModel(bound=self, kwargs={}, config={})

    def bind(self, **kwargs: object) -> Runnable[LanguageModelInput, AIMessage]:  # type: ignore[override]
        """See `Runnable.bind`. Tools and schemas may be bound before or after; what was bound is as good as given with the call."""
        return self._bindable.bind(**kwargs)

    def with_config(
        self, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """See `Runnable.with_config`. Tools and schemas may be bound before or after."""
        return self._bindable.with_config(config, **kwargs)

    def with_listeners(self, **listeners: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """See `Runnable.with_listeners`. Tools and schemas may be bound before or after."""
        return self._bindable.with_listeners(**listeners)

    def with_alisteners(self, **listeners: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """See `Runnable.with_alisteners`. Tools and schemas may be bound before or after."""
        return self._bindable.with_alisteners(**listeners)

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """What a config may hold for this model: the weights."""
        return [*super().config_specs, DIAL]

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

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: object,
    ) -> LangChainResult:
        with translated():
            question = self._question(messages, stop, kwargs)
            return convert.to_result(question.answer(), question.model_name)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: object,
    ) -> LangChainResult:
        with translated():
            question = self._question(messages, stop, kwargs)
            return convert.to_result(await question.aanswer(), question.model_name)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: object,
    ) -> Iterator[ChatGenerationChunk]:
        with translated():
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
        with translated():
            question = self._question(messages, stop, kwargs)
            async with aclosing(question.astream(self._chunks(question).feed)) as pieces:
                async for chunks in pieces:
                    for chunk in chunks:
                        if run_manager:
                            await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk

    def _chunks(self, question: Question) -> Chunks:
        return Chunks(lambda: question.model_name, in_blocks=self.output_version == "v1")

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
        return structured_output(self, schema, method, include_raw=include_raw, strict=strict, keywords=kwargs)
