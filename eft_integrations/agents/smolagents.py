"""`EFTModel`: a trio behind smolagents' model interface, in this process.

Tools are forced by a grammar (smolagents asks for `required`), structured output by the schema; both need no luck.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from smolagents.models import (
    ChatMessage,
    ChatMessageStreamDelta,
    ChatMessageToolCall,
    ChatMessageToolCallFunction,
    ChatMessageToolCallStreamDelta,
    MessageRole,
    Model,
    TokenUsage,
)
from smolagents.tools import Tool

from eft_engine.config import RewardWeights
from eft_integrations.backends.pool import backend_of, shared_backend
from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.chat.request import ChatDelta, ChatRequest
from eft_integrations.sampling import SAMPLING_FIELDS
from eft_integrations.weights import current_weights, first_given
from eft_integrations.wire.openai import to_messages, to_response_schema, to_tool_choice, to_tools

if TYPE_CHECKING:
    from eft_engine import Engine

Messages = list[ChatMessage | dict[str, object]]


class EFTModel(Model):  # type: ignore[misc]
    """A base model with the behaviour of small tuned pairs, for smolagents.

    Args:
        backend: any `ChatBackend`; or
        engine: an engine that is loaded already; or
        preset, base, tuned, reference, pairs, engine_config: the names of a trio, as for `shared_backend`.
        reward_weights: for every pair, or by pair; a call's `reward_weights=` and an `eft_integrations.weights` block go first.
        lenient_tool_calls: take calls that the model writes in another form than its own chat template's; False: they stay text.
            A call's `lenient_tool_calls=` goes first.
        sampling: fields of `SamplingParams` for every call (`temperature=0`, `max_tokens=512`, ...).
    """

    def __init__(
        self,
        *,
        backend: ChatBackend | None = None,
        engine: Engine | None = None,
        preset: str | None = None,
        base: str | None = None,
        tuned: str | None = None,
        reference: str | None = None,
        pairs: Mapping[str, object] | None = None,
        engine_config: Mapping[str, object] | None = None,
        reward_weights: RewardWeights = None,
        lenient_tool_calls: bool = True,
        **sampling: object,
    ) -> None:
        _check_names(sampling)
        if backend is None:
            backend = (
                backend_of(engine)
                if engine is not None
                else shared_backend(
                    base=base,
                    tuned=tuned,
                    reference=reference,
                    pairs=pairs,
                    preset=preset,
                    engine_config=engine_config,
                )
            )
        self.backend = backend
        self.reward_weights = reward_weights
        self.lenient_tool_calls = lenient_tool_calls
        super().__init__(model_id=backend.model_name, **sampling)

    @property
    def supports_stop_parameter(self) -> bool:
        """Stop strings are always honoured."""
        return True

    def generate(
        self,
        messages: Messages,
        stop_sequences: list[str] | None = None,
        response_format: dict[str, object] | None = None,
        tools_to_call_from: list[Tool] | None = None,
        reward_weights: RewardWeights = None,
        lenient_tool_calls: bool | None = None,
        **kwargs: object,
    ) -> ChatMessage:
        """See `Model.generate`; `reward_weights`, `lenient_tool_calls` and fields of `SamplingParams` are keywords too."""
        asked = self._prepare_completion_kwargs(messages, stop_sequences, response_format, tools_to_call_from, **kwargs)
        request = self._request(asked, reward_weights, lenient_tool_calls)
        result = self.backend.chat(request)
        calls = [
            ChatMessageToolCall(
                function=ChatMessageToolCallFunction(name=call.name, arguments=call.arguments),
                id=call.call_id,
                type="function",
            )
            for call in result.tool_calls
        ]
        return ChatMessage(
            role=MessageRole.ASSISTANT,
            content=result.content,
            tool_calls=calls or None,
            raw={"eft": dict(result.metadata), "finish_reason": result.finish_reason},
            token_usage=TokenUsage(result.usage.prompt_tokens, result.usage.completion_tokens),
        )

    def generate_stream(
        self,
        messages: Messages,
        stop_sequences: list[str] | None = None,
        response_format: dict[str, object] | None = None,
        tools_to_call_from: list[Tool] | None = None,
        reward_weights: RewardWeights = None,
        lenient_tool_calls: bool | None = None,
        **kwargs: object,
    ) -> Generator[ChatMessageStreamDelta]:
        """`generate` piece by piece. The weights are settled now, not when the first piece is read."""
        asked = self._prepare_completion_kwargs(messages, stop_sequences, response_format, tools_to_call_from, **kwargs)
        request = self._request(asked, reward_weights, lenient_tool_calls)
        return _pieces(self.backend.stream(request))

    def _request(
        self, prepared: Mapping[str, Any], reward_weights: RewardWeights, lenient_tool_calls: bool | None
    ) -> ChatRequest:
        """What is asked; `prepared` is smolagents' own form of it."""
        asked = dict(prepared)
        messages = to_messages([{**message, "role": _role(message["role"])} for message in asked.pop("messages")])
        choice, tools = to_tool_choice(asked.pop("tool_choice", None), to_tools(asked.pop("tools", ())))
        schema = to_response_schema(asked.pop("response_format", None))
        _check_names(asked)
        return ChatRequest(
            messages=messages,
            tools=tools,
            tool_choice=choice,
            response_schema=schema,
            sampling=asked,
            reward_weights=first_given(reward_weights, current_weights(), self.reward_weights),
            lenient_tool_calls=self.lenient_tool_calls if lenient_tool_calls is None else lenient_tool_calls,
        )


def _check_names(sampling: Mapping[str, object]) -> None:
    if unknown := sorted(set(sampling) - SAMPLING_FIELDS):
        raise TypeError(
            f"EFTModel has no option {unknown[0]!r}; a call takes reward_weights, {', '.join(sorted(SAMPLING_FIELDS))}"
        )


def _role(role: object) -> str:
    return role.value if isinstance(role, MessageRole) else str(role)


def _pieces(deltas: Iterator[ChatDelta]) -> Generator[ChatMessageStreamDelta]:
    for delta in deltas:
        if delta.result is not None:
            usage = delta.result.usage
            tokens = TokenUsage(usage.prompt_tokens, usage.completion_tokens)
            yield ChatMessageStreamDelta(content="", token_usage=tokens)
        elif (call := delta.call) is not None:
            function = ChatMessageToolCallFunction(name=call.name or "", arguments=call.arguments)
            piece = ChatMessageToolCallStreamDelta(call.index, call.call_id, "function", function)
            yield ChatMessageStreamDelta(tool_calls=[piece])
        elif delta.text:
            yield ChatMessageStreamDelta(content=delta.text)
