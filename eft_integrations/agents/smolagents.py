"""`EFTModel`: a trio behind smolagents' model interface, in this process.

Tools are forced by a grammar (smolagents asks for `required`), structured output by the schema; both need no luck.

An agent of smolagents does not ask why an answer ended: it closes a block of code that `max_tokens` cut and runs it, and hands a
text that is no JSON to a tool as its one argument. So a stream gives calls when they are whole, and an answer that was cut ends
with a sentence that says so, which is no code and no JSON; the agent tells the model of the error and goes on with its next step.
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
from eft_integrations.backends.replaced import in_effect
from eft_integrations.call_options import CallOptions, asked_composition
from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.pieces import Pieces
from eft_integrations.sampling import SAMPLING_FIELDS
from eft_integrations.weights import first_given, weights_of_call
from eft_integrations.wire.openai import (
    is_strict,
    report_form,
    to_messages,
    to_response_schema,
    to_tool_choice,
    to_tools,
)

if TYPE_CHECKING:
    from eft_engine import Engine

Messages = list[ChatMessage | dict[str, object]]

OPTIONS = (
    "call_lookahead", "call_weight", "chat_template_kwargs", "composition", "lenient_tool_calls", "min_plausibility",
    "prompt_pairs", "reasoning", "reasoning_budget", "reasoning_tags", "reasoning_weight", "strict", "tool_notation",
    "tuned_plausibility",
)  # fmt: skip
"""Fields of `CallOptions` that are options of the model and keywords of a call."""


class EFTModel(Model):  # type: ignore[misc]
    """A base model with the behaviour of small tuned pairs, for smolagents.

    Args:
        backend: any `ChatBackend`; or
        engine: an engine that is loaded already; or
        preset, base, tuned, reference, pairs, engine_config: the names of a trio, as for `shared_backend`.
        reward_weights: for every pair, or by pair; a call's `reward_weights=` and an `eft_integrations.weights` block go first.
        options: those in `OPTIONS` as `CallOptions` has them (`reasoning="off"`, ...), for which a call's own go first; and fields
            of `SamplingParams` (`temperature=0`, `max_tokens=512`, ...), which go before a call's own, as smolagents has it.
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
        **options: object,
    ) -> None:
        self.options, sampling = _split(options)
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
        **kwargs: object,
    ) -> ChatMessage:
        """See `Model.generate`; `reward_weights`, those in `OPTIONS` and fields of `SamplingParams` are keywords too.

        `raw` has the `finish_reason`, the thought (`reasoning`) and, as `eft`, what is reported, calls that are none among it.
        """
        options, kwargs = _split(kwargs)
        asked = self._prepare_completion_kwargs(messages, stop_sequences, response_format, tools_to_call_from, **kwargs)
        request = self._request(asked, reward_weights, options)
        result = in_effect(self.backend).chat(request)
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
            content=result.content + _end(request, result),
            tool_calls=calls or None,
            raw={"eft": report_form(result), "finish_reason": result.finish_reason, "reasoning": result.reasoning},
            token_usage=TokenUsage(result.usage.prompt_tokens, result.usage.completion_tokens),
        )

    def generate_stream(
        self,
        messages: Messages,
        stop_sequences: list[str] | None = None,
        response_format: dict[str, object] | None = None,
        tools_to_call_from: list[Tool] | None = None,
        reward_weights: RewardWeights = None,
        **kwargs: object,
    ) -> Generator[ChatMessageStreamDelta]:
        """`generate` piece by piece; calls come when they are whole. The weights are settled now, not when a piece is read."""
        options, kwargs = _split(kwargs)
        asked = self._prepare_completion_kwargs(messages, stop_sequences, response_format, tools_to_call_from, **kwargs)
        request = self._request(asked, reward_weights, options)
        deltas = in_effect(self.backend).stream(request)
        return Pieces(_pieces(request, deltas), deltas.close)  # type: ignore[attr-defined]

    def _request(
        self, prepared: Mapping[str, Any], reward_weights: RewardWeights, given: Mapping[str, object]
    ) -> ChatRequest:
        """What is asked; `prepared` is smolagents' own form of it, `given` are the call's options."""
        own, call = CallOptions.model_validate(self.options), CallOptions.model_validate(given)
        options = own.model_copy(update={name: getattr(call, name) for name in call.model_fields_set})
        asked = dict(prepared)
        messages = to_messages([{**message, "role": _role(message["role"])} for message in asked.pop("messages")])
        tools = to_tools(asked.pop("tools", ()), strict=options.strict)
        choice, tools = to_tool_choice(asked.pop("tool_choice", None), tools)
        response_format = asked.pop("response_format", None)
        _check_names(asked)
        return ChatRequest(
            messages=messages,
            tools=tools,
            tool_choice=choice,
            response_schema=to_response_schema(response_format),
            strict_response=is_strict(response_format) or bool(options.strict),
            reasoning=options.reasoning,
            reasoning_budget=options.reasoning_budget,
            reasoning_tags=options.reasoning_tags,
            sampling=asked,
            reward_weights=first_given(reward_weights, weights_of_call(), self.reward_weights),
            call_weight=options.call_weight,
            call_lookahead=options.call_lookahead,
            reasoning_weight=options.reasoning_weight,
            composition=asked_composition(own, call),
            template_variables=options.chat_template_kwargs or {},
            lenient_tool_calls=options.lenient_tool_calls,
            tool_notation=options.tool_notation,
        )


def _split(given: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """Options, and everything else."""
    options = {name: value for name, value in given.items() if name in OPTIONS}
    return options, {name: value for name, value in given.items() if name not in OPTIONS}


def _check_names(sampling: Mapping[str, object]) -> None:
    if unknown := sorted(set(sampling) - SAMPLING_FIELDS):
        known = ", ".join((*OPTIONS, *sorted(SAMPLING_FIELDS)))
        raise TypeError(f"EFTModel has no option {unknown[0]!r}; a call takes reward_weights, {known}")


def _role(role: object) -> str:
    return role.value if isinstance(role, MessageRole) else str(role)


def _pieces(request: ChatRequest, deltas: Iterator[ChatDelta]) -> Generator[ChatMessageStreamDelta]:
    for delta in deltas:
        if (result := delta.result) is not None:
            for index, call in enumerate(result.tool_calls):
                function = ChatMessageToolCallFunction(name=call.name, arguments=call.arguments)
                piece = ChatMessageToolCallStreamDelta(index, call.call_id, "function", function)
                yield ChatMessageStreamDelta(tool_calls=[piece])
            tokens = TokenUsage(result.usage.prompt_tokens, result.usage.completion_tokens)
            yield ChatMessageStreamDelta(content=_end(request, result), token_usage=tokens)
        elif delta.text:
            yield ChatMessageStreamDelta(content=delta.text)


def _end(request: ChatRequest, result: ChatResult) -> str:
    """A sentence behind an answer that is not whole, on a line of its own; nothing behind one that is.

    It has no quotes, braces or code in it, so that nothing can be made of what stands before it.
    """
    was_cut = result.finish_reason == "length"
    if result.invalid_tool_calls:
        names = ", ".join(call.name or "a tool" for call in result.invalid_tool_calls)
        why = f"the call of {names} is not to be used, {result.invalid_tool_calls[0].reason}"
    elif "format_error" in result.metadata:
        why = f"this is not the JSON that was asked for, {result.metadata['format_error']}"
    elif was_cut and request.response_schema is None and not result.tool_calls:
        why = "this answer was cut here"
    else:
        return ""
    plain = "".join(character for character in why if character not in "\"'`{}<>\n")
    return f"\n[Not whole: {plain}{'; it reached max_tokens, so be shorter' if was_cut else ''}.]"
