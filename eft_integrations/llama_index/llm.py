"""`EFTLLM`: a trio behind LlamaIndex's interface of function-calling LLMs.

Reward weights reach the engine from, in order of precedence: the call (`reward_weights=`), the surrounding
`eft_integrations.weights(...)` block, the LLM's own field, the pairs. They are settled when the call is made, so that a stream
that is read later keeps the weights of its call.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence

from llama_index.core.base.llms import types
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.tools.types import BaseTool
from llama_index.core.types import TokenAsyncGen
from pydantic import BaseModel, ConfigDict

from eft_integrations.chat.request import DEFAULT_MAX_TOKENS
from eft_integrations.json_objects import Model, partial_object
from eft_integrations.llama_index.convert import ChatChunks, to_chat_response, to_completion, to_messages, tool_form
from eft_integrations.llama_index.structured import Prediction
from eft_integrations.question import Question
from eft_integrations.trio_model import TrioModel
from eft_integrations.weights import settle


class EFTLLM(TrioModel, FunctionCallingLLM):
    """A base model with the behaviour of small tuned pairs, as a LlamaIndex LLM that calls tools; see `TrioModel` for its fields.

    The keywords of every call are those of `CallKeywords`. An unknown keyword is an error.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    @classmethod
    def class_name(cls) -> str:
        """What serialised settings call this class."""
        return "EFTLLM"

    @property
    def metadata(self) -> types.LLMMetadata:
        """What LlamaIndex may rely on. The context window is the engine's, so asking for it loads the engine; see `load`."""
        return types.LLMMetadata(
            context_window=self._backend.context_len,
            num_output=self.max_tokens or DEFAULT_MAX_TOKENS,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.model_name,
        )

    def to_payload(self) -> dict[str, object]:
        """What instrumentation events say of this LLM; does not load the engine."""
        return {"class_name": self.class_name(), "model_name": self.model_name, "reward_weights": self.reward_weights}

    def _question(self, messages: Sequence[types.ChatMessage], keywords: Mapping[str, object]) -> Question:
        return self._ask(to_messages(messages), settle(keywords))

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
        return self._question(messages, kwargs).stream(ChatChunks(self.model_name).feed)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[types.ChatMessage], **kwargs: object) -> types.ChatResponseAsyncGen:
        """The answer in pieces, without blocking the event loop; closing the generator cancels the request."""
        return self._question(messages, kwargs).astream(ChatChunks(self.model_name).feed)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: object) -> types.CompletionResponse:
        """The answer to a text as the user's turn, or, where it is `formatted` already, its continuation."""
        result = self._ask_text(prompt, settle(kwargs), formatted).answer()
        return to_completion(to_chat_response(result, self.model_name))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: object) -> types.CompletionResponse:
        """See `complete`; without blocking the event loop."""
        result = await self._ask_text(prompt, settle(kwargs), formatted).aanswer()
        return to_completion(to_chat_response(result, self.model_name))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: object) -> types.CompletionResponseGen:
        """See `complete`, in pieces; the request is submitted now."""
        return self._ask_text(prompt, settle(kwargs), formatted).stream(ChatChunks(self.model_name).feed_text)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: object
    ) -> types.CompletionResponseAsyncGen:
        """See `complete`, in pieces; without blocking the event loop."""
        return self._ask_text(prompt, settle(kwargs), formatted).astream(ChatChunks(self.model_name).feed_text)

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: object) -> str:
        """See `LLM.apredict`, which asks for `metadata`: the engine is loaded beside the event loop first."""
        await self._aload()
        return await super().apredict(prompt, **prompt_args)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: object) -> TokenAsyncGen:
        """See `LLM.astream` and `apredict`."""
        await self._aload()
        return await super().astream(prompt, **prompt_args)

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
            ValueError: there is none, and `error_on_no_tool_call`.
        """
        calls = [
            ToolSelection(tool_id=block.tool_call_id or "", tool_name=block.tool_name, tool_kwargs=_arguments(block))
            for block in response.message.blocks
            if isinstance(block, types.ToolCallBlock)
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
            ValueError: `max_tokens` does not hold the object, or it breaks a rule that no mask can hold.
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
