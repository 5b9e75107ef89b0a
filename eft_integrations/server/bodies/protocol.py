"""Request bodies of chat completions, and what other bodies have in common with them.

What becomes of a field that is not declared here says `unused_fields`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, TypedDict

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from eft_engine import PromptPair, errors
from eft_engine.config import RewardWeights
from eft_engine.weights import checked_weight, is_schedule
from eft_integrations.sampling import SamplingFields
from eft_integrations.server.bodies.body import Body, FreeJson, Part, same_weights, unused_of
from eft_integrations.server.bodies.constraints import ConstraintFields
from eft_integrations.server.bodies.nested_fields import unused_choice, unused_format, unused_messages, unused_tools
from eft_integrations.server.bodies.unused_fields import is_neutral
from eft_integrations.server.errors import INVALID, ApiError, Kind, shortened
from eft_integrations.server.steering import Steering
from eft_integrations.wire.reasoning import asked_reasoning, thought_text

MAX_LOOKAHEAD = 4096
"""Most tokens that are drawn before it is known whether they are a call."""

NUMBERS = frozenset(
    {
        "weight",
        "then",
        "before",
        "outside",
        "otherwise",
        "start",
        "end",
        "above",
        "below",
        "factor",
        "most",
        "num_tokens",
    }
)
"""Fields of schedules that are numbers, or may be."""


def _strict(weight: object) -> object:
    """JSON's numbers, and nothing that could be read as one: true is no weight, nor is a text. Inside of schedules too."""
    if isinstance(weight, bool | str):
        raise ValueError(f"a weight is a number, got {json.dumps(weight):.80}")
    for name, value in weight.items() if isinstance(weight, Mapping) else ():
        if name in NUMBERS:
            _strict(value)
    return weight


def _weight(value: object, whose: str, field: str | None) -> None:
    _strict(value)
    if isinstance(value, int | float | Mapping):
        try:
            checked_weight(value, whose)
        except errors.InvalidWeightError as error:
            raise ApiError(str(error), Kind(400, INVALID, "invalid_weight", field)) from None


def _weights(value: object, info: ValidationInfo) -> object:
    """A weight for all pairs, or weights by name; each a number or a schedule.

    Raises:
        ApiError: 400; a number that is not finite, or a schedule that is none.
    """
    if isinstance(value, Mapping) and not is_schedule(value):
        for name, weight in value.items():
            _weight(weight, f"pair {shortened(str(name))!r}", info.field_name)
    else:
        _weight(value, "every pair", info.field_name)
    return value


Weights = Annotated[RewardWeights, BeforeValidator(_weights)]
"""What a body says of weights."""


def _prompt_pair(value: object) -> object:
    if isinstance(value, Mapping):
        _weight(value.get("weight", 1.0), "a prompt pair", "eft_prompt_pairs")
    return value


class WeightedBody(Body):
    """What all bodies have in common that a composition answers at some weights."""

    model: str = Field(description="a composition, perhaps with weights behind it: name@pair=0.5")
    eft_reward_weights: Weights = Field(
        default=None,
        description="for every pair, or by pair name; each a number or a schedule; reward_weights is another name of it",
    )
    eft_prompt_pairs: dict[str, Annotated[PromptPair, BeforeValidator(_prompt_pair)]] | None = Field(
        default=None,
        description="prompts as pairs, by name: positive and negative, each a text, messages, texts by role, or "
        '{"texts": [...]} to take out; eft_reward_weights may name them',
    )
    eft_min_plausibility: float | None = Field(
        default=None, ge=0.0, le=1.0, description="keep what the base gives at least this share of its best token"
    )
    eft_tuned_plausibility: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="beyond weight 1 lift only what a pair's tuned model gives at least this share of its best token",
    )

    @model_validator(mode="before")
    @classmethod
    def _both_names(cls, values: object) -> object:
        return same_weights(values)

    def steering(self) -> Steering:
        """What is asked of the composition, besides an answer."""
        return Steering(
            reward_weights=self.eft_reward_weights,
            prompt_pairs=self.eft_prompt_pairs or {},
            min_plausibility=self.eft_min_plausibility,
            tuned_plausibility=self.eft_tuned_plausibility,
        )


class PartsBody(WeightedBody):
    """What bodies have in common whose answers have parts: a thought, calls, words."""

    eft_call_weight: Weights = Field(
        default=None,
        description="weights that decide whether a tool is called, and under which the call is written; 0: as the base would",
    )
    eft_reasoning_weight: Weights = Field(default=None, description="weights of a thought")
    eft_call_lookahead: int | None = Field(
        default=None, ge=1, le=MAX_LOOKAHEAD, description="tokens within which a call must begin"
    )

    def steering(self) -> Steering:
        """See `WeightedBody`."""
        return dataclasses.replace(
            super().steering(),
            call_weight=self.eft_call_weight,
            reasoning_weight=self.eft_reasoning_weight,
            call_lookahead=self.eft_call_lookahead,
        )


class GenerationBody(SamplingFields, WeightedBody):
    """What all bodies that ask for text have in common; ranges are checked by the engine."""

    stream: bool | None = False

    @field_validator("seed", "top_k", mode="before")
    @classmethod
    def _none_as_others_write_it(cls, value: object, info: ValidationInfo) -> object:
        """-1 is no seed and no bound for vLLM and llama.cpp."""
        if value == -1 and not isinstance(value, bool):
            return None if info.field_name == "seed" else 0
        return value


class ReasoningOptions(Part):
    """How the model is to think, as OpenAI's responses and OpenRouter have it."""

    effort: str | None = Field(default=None, description="none: do not think; low, medium, high, ...")
    max_tokens: int | None = Field(default=None, ge=0, description="most tokens of a thought")
    enabled: bool | None = Field(default=None, description="false: do not think")
    summary: str | None = Field(
        default=None, description="auto, concise, detailed: responses tell the whole thought as its summary"
    )
    generate_summary: str | None = Field(default=None, description="an older name of summary")


class AskedReasoning(TypedDict):
    """Fields of `ChatRequest`."""

    reasoning: str
    reasoning_budget: int | None
    reasoning_tags: tuple[str, str] | None


class ReasoningBody(Body):
    """What bodies of chats have in common: whether the model thinks first, how long, and how its thoughts are told."""

    reasoning: ReasoningOptions | None = None
    reasoning_effort: str | None = Field(default=None, description="none: do not think; goes before reasoning.effort")
    eft_reasoning_budget: int | None = Field(
        default=None, ge=0, description="most tokens of a thought; goes before reasoning.max_tokens"
    )
    eft_reasoning_tags: tuple[str, str] | None = Field(
        default=None, description="the texts around a thought, where the chat template does not show them"
    )

    @field_validator("reasoning", mode="before")
    @classmethod
    def _effort_alone(cls, value: object) -> object:
        """A text is the effort, true and false are a switch."""
        if isinstance(value, bool):
            return {"enabled": value}
        return {"effort": value} if isinstance(value, str) else value

    def unused_inside(self) -> Iterator[str]:
        """See `Body`."""
        yield from super().unused_inside()
        if self.reasoning is not None:
            yield from unused_of("reasoning", self.reasoning.model_extra)

    def asked_reasoning(self) -> AskedReasoning:
        """What is asked of thoughts."""
        options = self.reasoning or ReasoningOptions()
        effort = self.reasoning_effort or options.effort or ("none" if options.enabled is False else None)
        budget = self.eft_reasoning_budget
        return AskedReasoning(
            reasoning=asked_reasoning(effort),
            reasoning_budget=options.max_tokens if budget is None else budget,
            reasoning_tags=self.eft_reasoning_tags,
        )


class ToolsBody(ReasoningBody, ConstraintFields, PartsBody, GenerationBody):
    """What chat completions and responses have in common."""

    tools: list[FreeJson] | None = None
    tool_choice: str | FreeJson | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    chat_template_kwargs: FreeJson | None = Field(default=None, description="variables of the chat template")
    eft_lenient_tool_calls: bool | None = Field(
        default=None, description="false: text is a tool call only in the form of the model's own chat template"
    )
    eft_strict: bool | None = Field(
        default=None,
        description="true: refuse a schema with a keyword that no mask can hold, where a tool or a format does not say its own",
    )

    def unused_inside(self) -> Iterator[str]:
        """See `Body`."""
        yield from super().unused_inside()
        yield from unused_tools(self.tools or ())
        yield from unused_choice(self.tool_choice)
        if self.top_logprobs and "logprobs" in type(self).model_fields and not getattr(self, "logprobs", None):
            yield "top_logprobs"


class StreamOptions(Part):
    """Options of a stream."""

    include_usage: bool | None = False


class SamplingBody(ConstraintFields, GenerationBody):
    """What chat completions and completions have in common."""

    n: int = Field(default=1, ge=1, le=128, description="answers per prompt")
    stream_options: StreamOptions | None = None
    response_format: FreeJson | None = Field(default=None, description="text, json_object or json_schema")

    def unused_inside(self) -> Iterator[str]:
        """See `Body`."""
        yield from super().unused_inside()
        yield from self.unused_constraints()
        yield from unused_format("response_format", self.response_format)
        if self.stream_options is not None:  # what hides the length of pieces changes nothing in them
            yield from unused_of("stream_options", self.stream_options.model_extra, quiet=("include_obfuscation",))


REFUSED_IN_MESSAGES = {
    "function_call": "deprecated by OpenAI; write it as tool_calls",
    "audio": "this model reads text only",
    "images": "this model reads text only",
    "prefix": "POST /v1/completions continues a text that is rendered already",
    "partial": "POST /v1/completions continues a text that is rendered already",
}


class MessageBody(Part):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[FreeJson] | None = None
    name: str | None = None
    tool_calls: list[FreeJson] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[FreeJson] | None = Field(
        default=None, description="OpenRouter's form of a thought; read where the two above are not there"
    )

    @model_validator(mode="after")
    def _refuse_what_would_be_missing(self) -> MessageBody:
        for name, value in (self.model_extra or {}).items():
            if name in REFUSED_IN_MESSAGES and value and not is_neutral(name, value):
                raise ValueError(f"{name} is not supported: {REFUSED_IN_MESSAGES[name]}")
        return self

    def plain(self) -> dict[str, object]:
        """As `wire.openai.to_messages` reads it."""
        fields = self.model_dump(exclude_none=True, exclude={"reasoning_details"})
        if self.reasoning_details and not (self.reasoning_content or self.reasoning):
            fields["reasoning_content"] = thought_text(self.reasoning_details)
        return fields


class ChatBody(ToolsBody, SamplingBody):
    """POST /v1/chat/completions."""

    messages: list[MessageBody] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    documents: list[dict[str, str]] | None = Field(default=None, description="texts to answer from")
    eft_token_rewards: bool | None = Field(
        default=None,
        description="true: tell the implicit reward of every token by pair, in eft.tokens of chunks and answers",
    )
    eft_progress: bool | None = Field(
        default=None,
        description="true: chunks of a stream tell in eft.progress how many tokens are written, drafted and accepted so far",
    )

    def unused_inside(self) -> Iterator[str]:
        """See `Body`."""
        yield from super().unused_inside()
        yield from unused_messages(self.messages)
