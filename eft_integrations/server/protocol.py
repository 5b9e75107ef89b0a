"""Request bodies of chat completions, completions and tokenize, and the table of fields that are not honoured.

A field that is not declared here is ignored and named in `eft.ignored` of the reply, with three exceptions: those in `UNSUPPORTED`
are refused, those in `WITHOUT_EFFECT` cannot change an answer and are not mentioned, and a misspelt `eft_...` is refused.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypedDict

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from eft_engine.config import RewardWeights
from eft_integrations.sampling import SamplingFields
from eft_integrations.wire.reasoning import asked_reasoning

MAX_DEPTH = 64
"""Levels of nesting in schemas and other free JSON."""

UNSUPPORTED = {
    "functions": "deprecated by OpenAI; use tools",
    "function_call": "deprecated by OpenAI; use tool_choice",
    "audio": "this server answers in text",
    "web_search_options": "this server searches nothing",
    "suffix": "text is continued, not filled in",
    "previous_response_id": "this server keeps no answers; send the whole conversation as input",
    "conversation": "this server keeps no conversations; send the whole conversation as input",
    "background": "this server answers in the request's own connection",
    "prompt_id": "this server keeps no prompts",
}
WITHOUT_EFFECT_ON_THOUGHTS = frozenset({"summary", "generate_summary"})
WITHOUT_EFFECT = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prediction", "verbosity", "include", "truncation", "stream_options", "max_tool_calls",
    }
)  # fmt: skip


def _plain_json(value: dict[str, object]) -> dict[str, object]:
    """Free JSON without NaN that is not nested beyond reason."""
    level: list[object] = [value]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        level = [child for item in level for child in _children(item)]
    json.dumps(value, allow_nan=False)
    return value


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


FreeJson = Annotated[dict[str, object], AfterValidator(_plain_json)]


class Body(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _refuse_half_characters(cls, values: object) -> object:
        """JSON can escape one half of a surrogate pair; no tokenizer can read that."""
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text that is not Unicode: {error.reason}") from None
        return values

    @model_validator(mode="after")
    def _refuse_what_is_not_there(self) -> Body:
        for name, value in (self.model_extra or {}).items():
            if name in UNSUPPORTED and value not in (None, False, [], "none"):
                raise ValueError(f"{name} is not supported: {UNSUPPORTED[name]}")
            if name == "modalities" and value not in (None, ["text"]):
                raise ValueError("modalities: this server answers in text")
            if name.startswith("eft_"):
                known = ", ".join(own for own in type(self).model_fields if own.startswith("eft_"))
                raise ValueError(f"there is no {name}; this server knows {known}")
        return self

    @property
    def ignored(self) -> list[str]:
        """Names of fields that were sent and change nothing although they might have been meant to."""
        quiet = WITHOUT_EFFECT | set(UNSUPPORTED) | {"modalities"}
        return sorted(
            name for name, value in (self.model_extra or {}).items() if name not in quiet and value is not None
        )


class GenerationBody(SamplingFields, Body):
    """What all bodies that ask for text have in common; ranges are checked by the engine."""

    model: str = Field(description="a composition, perhaps with weights behind it: name@pair=0.5")
    stream: bool | None = False
    eft_reward_weights: RewardWeights = Field(default=None, description="for every pair, or by pair name")


class ReasoningOptions(BaseModel):
    """How the model is to think, as OpenAI's responses and OpenRouter have it."""

    model_config = ConfigDict(extra="allow")

    effort: str | None = Field(default=None, description="none: do not think; low, medium, high, ...")
    max_tokens: int | None = Field(default=None, ge=0, description="most tokens of a thought")
    enabled: bool | None = Field(default=None, description="false: do not think")


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

    @property
    def ignored(self) -> list[str]:
        """See `Body`."""
        further = (self.reasoning.model_extra or {}) if self.reasoning is not None else {}
        unknown = [name for name in further if name not in WITHOUT_EFFECT_ON_THOUGHTS]
        return sorted([*super().ignored, *(f"reasoning.{name}" for name in unknown)])

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


class ToolsBody(ReasoningBody, GenerationBody):
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


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool | None = False


class SamplingBody(GenerationBody):
    """What chat completions and completions have in common."""

    n: int = Field(default=1, ge=1, le=128, description="answers per prompt")
    stream_options: StreamOptions | None = None
    response_format: FreeJson | None = Field(default=None, description="text, json_object or json_schema")


class MessageBody(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[FreeJson] | None = None
    name: str | None = None
    tool_calls: list[FreeJson] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChatBody(ToolsBody, SamplingBody):
    """POST /v1/chat/completions."""

    messages: list[MessageBody] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    documents: list[dict[str, str]] | None = Field(default=None, description="texts to answer from")


class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    prompt: str | list[str] = Field(description="a text to continue, or several")
    max_tokens: int | None = 16
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = None


class TokenizeBody(ReasoningBody):
    """POST /tokenize: a text, or messages as the chat template renders them."""

    model: str
    prompt: str | None = None
    messages: list[MessageBody] | None = Field(default=None, min_length=1)
    tools: list[FreeJson] | None = None
    chat_template_kwargs: FreeJson | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages")
        return self
