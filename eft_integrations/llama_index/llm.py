"""`EFTLLM`: a trio behind LlamaIndex's interface of function-calling LLMs.

Reward weights reach the engine from, in order of precedence: the call (`reward_weights=`), the surrounding
`eft_integrations.weights(...)` block, the LLM's own field, the pairs. They are settled when the call is made, so that a stream
that is read later keeps the weights of its call.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence

from llama_index.core.base.llms import types
from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection, default_completion_to_prompt
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.tools.types import BaseTool
from llama_index.core.types import TokenAsyncGen
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from eft_engine import errors
from eft_integrations.chat.messages import Message
from eft_integrations.chat.request import DEFAULT_MAX_TOKENS
from eft_integrations.json_objects import Model, partial_object
from eft_integrations.llama_index.context_aware import context_keywords, in_context
from eft_integrations.llama_index.convert import ChatChunks, to_chat_response, to_completion
from eft_integrations.llama_index.history import to_messages
from eft_integrations.llama_index.keywords import call_keywords, check_variables, continued_text, joined_pairs
from eft_integrations.llama_index.names import model_fields
from eft_integrations.llama_index.query_weights import QUERY_WEIGHTS
from eft_integrations.llama_index.structured import Prediction
from eft_integrations.llama_index.tools import tool_form
from eft_integrations.question import Question
from eft_integrations.trio_model import TrioModel
from eft_integrations.weights import settle, weights_form

OWN_PROMPTS: dict[str, object] = {
    "messages_to_prompt": generic_messages_to_prompt,
    "completion_to_prompt": default_completion_to_prompt,
    "query_wrapper_prompt": None,
}
"""Fields that write prompts in place of the model's chat template, and what LlamaIndex has for them where nothing is given."""


class EFTLLM(TrioModel, FunctionCallingLLM):
    """A base model with the behaviour of small tuned pairs, as a LlamaIndex LLM that calls tools; see `TrioModel` for its fields.

    The keywords of every call are those of `CallKeywords`. An unknown keyword is an error. Names of HuggingFaceLLM, LlamaCPP,
    OpenAILike and Ollama are understood (docs/llama_index.md).

    Chats are written by the model's chat template, or, where `messages_to_prompt` is given, by that; texts are what the user says
    in the chat template, or, where `completion_to_prompt` or `query_wrapper_prompt` is given, continued as these write them.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    context_window: int | None = Field(
        default=None, gt=0, description="tokens that prompts are packed into; None: as many as the models hold"
    )
    additional_kwargs: dict[str, object] = Field(
        default_factory=dict, description="keywords of all calls that do not give them, as far as they are no fields"
    )
    is_chat_model: bool | None = Field(
        default=None, description="what `metadata` says; None: True, unless only texts have a prompt of their own"
    )
    is_function_calling_model: bool | None = Field(
        default=None, description="what `metadata` says; None: True, unless messages_to_prompt is given"
    )

    _own_prompts: frozenset[str] = PrivateAttr(default=frozenset())

    @model_validator(mode="before")
    @classmethod
    def _named_as_here(cls, given: object) -> object:
        """Names that users of other LLMs bring."""
        if not isinstance(given, Mapping):
            return given
        fields = model_fields(given, cls.model_fields)
        fields = {name: value for name, value in fields.items() if name not in OWN_PROMPTS or value is not None}
        if isinstance(wrapper := fields.get("query_wrapper_prompt"), str):
            fields["query_wrapper_prompt"] = PromptTemplate(wrapper)
        return fields

    def model_post_init(self, context: object, /) -> None:
        """See `TrioModel`. Prompts of one's own are known before LlamaIndex puts its own in their places."""
        super().model_post_init(context)
        self._own_prompts = frozenset(OWN_PROMPTS) & self.model_fields_set

    @classmethod
    def class_name(cls) -> str:
        """What serialised settings call this class."""
        return "EFTLLM"

    @property
    def metadata(self) -> types.LLMMetadata:
        """What LlamaIndex may rely on. The context window of a trio that is not loaded yet is that of its configurations.

        Raises:
            InvalidOptionError: `context_window` is larger than what the models hold.
        """
        context_len = self._backend.context_len
        if self.context_window is not None and self.context_window > context_len:
            raise errors.InvalidOptionError(
                f"context_window={self.context_window} is more than the {context_len} tokens that the models hold; give no more",
                option="context_window",
                value=self.context_window,
            )
        has_texts_only = self._writes_texts and not self._writes("messages_to_prompt")
        calls = self.is_function_calling_model
        return types.LLMMetadata(
            context_window=self.context_window or context_len,
            num_output=self.max_tokens or DEFAULT_MAX_TOKENS,
            is_chat_model=not has_texts_only if self.is_chat_model is None else self.is_chat_model,
            is_function_calling_model=not self._writes("messages_to_prompt") if calls is None else calls,
            model_name=self.model_name,
        )

    def to_payload(self) -> dict[str, object]:
        """What instrumentation events say of this LLM; loads no engine, and asks no server."""
        weights = weights_form(self.reward_weights)
        return {"class_name": self.class_name(), "model_name": self._shown_name, "reward_weights": weights}

    def _writes(self, name: str) -> bool:
        """Whether a prompt is written by the field of this name, which was given or set later."""
        return name in self._own_prompts or getattr(self, name) is not OWN_PROMPTS[name]

    @property
    def _writes_texts(self) -> bool:
        return self._writes("completion_to_prompt") or self._writes("query_wrapper_prompt")

    def _settled(self, keywords: Mapping[str, object]) -> dict[str, object]:
        """The keywords of a call, with those that all calls have, under the names of `CallKeywords`."""
        given = call_keywords(keywords)
        of_all_calls = {name: own for name, own in self.additional_kwargs.items() if given.get(name) is None}
        return settle({**given, **of_all_calls}, fixed=self.fixed_weights)

    def _question(self, messages: Sequence[types.ChatMessage], keywords: Mapping[str, object]) -> Question:
        writes = self._writes("messages_to_prompt")
        in_context = context_keywords(messages, self.messages_to_prompt if writes else None)
        asked, said = self._settled(joined_pairs(in_context, keywords)), to_messages(messages)
        if not writes:
            return self._ask(said, asked)
        assert self.messages_to_prompt is not None, "LlamaIndex puts its own in the place of None"
        return self._ask((), continued_text(asked), prompt=self.messages_to_prompt(messages))

    def _question_of_text(self, text: str, formatted: bool, keywords: Mapping[str, object]) -> Question:
        asked = self._settled(joined_pairs(context_keywords(text), keywords))
        if not formatted and not self._writes_texts:
            return self._ask_text(text, asked, formatted)
        if not formatted:
            if self.query_wrapper_prompt is not None:
                text = self.query_wrapper_prompt.format(query_str=text)
            assert self.completion_to_prompt is not None, "LlamaIndex puts its own in the place of None"
            text = self.completion_to_prompt(text)
        return self._ask_text(text, continued_text(asked), True)

    def _ask(
        self, messages: Sequence[Message], keywords: Mapping[str, object], *, prompt: str | None = None
    ) -> Question:
        """See `TrioModel._ask`. The weights are told to the answers of query engines that ask this."""
        question = super()._ask(messages, keywords, prompt=prompt)
        return dataclasses.replace(question, on_result=QUERY_WEIGHTS.listeners())

    # ---- chat and completion -------------------------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[types.ChatMessage], **kwargs: object) -> types.ChatResponse:
        """The whole answer."""
        return to_chat_response(self._question(messages, kwargs).answer(), self.model_name)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[types.ChatMessage], **kwargs: object) -> types.ChatResponse:
        """The whole answer, without blocking the event loop."""
        return to_chat_response(await self._question(messages, kwargs).aanswer(), self.model_name)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[types.ChatMessage], **kwargs: object) -> types.ChatResponseGen:
        """The answer in pieces; the request is submitted now, and closing the generator cancels it."""
        return self._question(messages, kwargs).stream(ChatChunks(lambda: self.model_name).feed)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[types.ChatMessage], **kwargs: object) -> types.ChatResponseAsyncGen:
        """The answer in pieces, without blocking the event loop; closing the generator cancels the request."""
        return self._question(messages, kwargs).astream(ChatChunks(lambda: self.model_name).feed)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: object) -> types.CompletionResponse:
        """The answer to a text as the user's turn, or, where it is `formatted` already, its continuation."""
        result = self._question_of_text(prompt, formatted, kwargs).answer()
        return to_completion(to_chat_response(result, self.model_name))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: object) -> types.CompletionResponse:
        """See `complete`; without blocking the event loop."""
        result = await self._question_of_text(prompt, formatted, kwargs).aanswer()
        return to_completion(to_chat_response(result, self.model_name))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: object) -> types.CompletionResponseGen:
        """See `complete`, in pieces; the request is submitted now."""
        return self._question_of_text(prompt, formatted, kwargs).stream(ChatChunks(lambda: self.model_name).feed_text)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: object
    ) -> types.CompletionResponseAsyncGen:
        """See `complete`, in pieces; without blocking the event loop."""
        return self._question_of_text(prompt, formatted, kwargs).astream(ChatChunks(lambda: self.model_name).feed_text)

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: object) -> str:
        """See `LLM.apredict`, which asks for `metadata`: the engine is loaded beside the event loop first."""
        await self._aload()
        return await super().apredict(prompt, **prompt_args)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: object) -> TokenAsyncGen:
        """See `LLM.astream` and `apredict`."""
        await self._aload()
        return await super().astream(prompt, **prompt_args)

    def _get_messages(self, prompt: BasePromptTemplate, **prompt_args: object) -> list[types.ChatMessage]:
        check_variables(prompt, prompt_args)
        make = functools.partial(super()._get_messages, prompt)
        return in_context(make(**prompt_args), lambda variables: make(**variables), prompt_args)

    def _get_prompt(self, prompt: BasePromptTemplate, **prompt_args: object) -> str:
        check_variables(prompt, prompt_args)
        make = functools.partial(super()._get_prompt, prompt)
        return in_context(make(**prompt_args), lambda variables: make(**variables), prompt_args)

    # ---- tools ---------------------------------------------------------------------------------------------------------

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | types.ChatMessage | None = None,
        chat_history: list[types.ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: object,
    ) -> dict[str, object]:
        """Keywords of the chat call; the history is copied, never added to. A demanded call is guaranteed by the grammar."""
        if isinstance(user_msg, str):
            user_msg = types.ChatMessage(role=types.MessageRole.USER, content=user_msg)
        choice = kwargs.pop("tool_choice", None)
        return {
            "messages": [*(chat_history or ()), *((user_msg,) if user_msg is not None else ())],
            "tools": [tool_form(tool.metadata) for tool in tools or ()],
            "tool_choice": "required" if choice is None and tool_required else choice,
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: types.ChatResponse, error_on_no_tool_call: bool = True, **kwargs: object
    ) -> list[ToolSelection]:
        """The calls of an answer; of a streamed one that is not over, with the arguments so far.

        Raises:
            NoToolCallError: there is none, and `error_on_no_tool_call`.
        """
        calls = [
            ToolSelection(tool_id=block.tool_call_id or "", tool_name=block.tool_name, tool_kwargs=_arguments(block))
            for block in response.message.blocks
            if isinstance(block, types.ToolCallBlock)
        ]
        if not calls and error_on_no_tool_call:
            broken = response.message.additional_kwargs.get("invalid_tool_calls") or ()
            reasons = "".join(f"; a call was begun, but {call['reason']}: {call['text']!r}" for call in broken)
            text = response.message.content or ""
            raise errors.NoToolCallError(f"the answer calls no tool: {text!r}{reasons}", text=text)
        return calls

    # ---- structured output ---------------------------------------------------------------------------------------------

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, object] | None = None,
        **prompt_args: object,
    ) -> Model:
        """An object of a pydantic class, decoded under its schema whatever the `pydantic_program_mode`.

        Args:
            output_cls: the class.
            prompt: the question.
            llm_kwargs: keywords of the call, `reward_weights` among them.
            prompt_args: variables of the prompt.

        Raises:
            IncompleteOutputError: `max_tokens` does not hold the object.
            OutputError: it breaks a rule that no mask can hold, or that a schema cannot express (a validator).
        """
        call = Prediction(self, output_cls, prompt, llm_kwargs, prompt_args)
        return call.whole(self.chat(call.messages, **call.keywords))

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, object] | None = None,
        **prompt_args: object,
    ) -> Model:
        """See `structured_predict`; without blocking the event loop."""
        call = Prediction(self, output_cls, prompt, llm_kwargs, prompt_args)
        return call.whole(await self.achat(call.messages, **call.keywords))

    def stream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, object] | None = None,
        **prompt_args: object,
    ) -> Generator[Model | BaseModel, None, None]:
        """The object as it grows; the last one is whole. The request is submitted now."""
        call = Prediction(self, output_cls, prompt, llm_kwargs, prompt_args)
        return call.objects(self.stream_chat(call.messages, **call.keywords))

    async def astream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, object] | None = None,
        **prompt_args: object,
    ) -> AsyncGenerator[Model | BaseModel, None]:
        """See `stream_structured_predict`; without blocking the event loop."""
        call = Prediction(self, output_cls, prompt, llm_kwargs, prompt_args)
        return call.aobjects(await self.astream_chat(call.messages, **call.keywords))


def _arguments(block: types.ToolCallBlock) -> dict[str, object]:
    arguments = block.tool_kwargs
    return arguments if isinstance(arguments, dict) else partial_object(arguments) or {}
