"""What a model of any host may be told for all its calls, and what a call may say for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, ValidationError

from eft_engine import errors
from eft_engine.config import CompositionOptions, PromptOptions, PromptPair, RewardWeights, SpeculationOptions
from eft_integrations.durations import keep_alive_s
from eft_integrations.sampling import SamplingFields
from eft_integrations.wire.reasoning import reasoning_of

NAMES_ELSEWHERE = {
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "request_timeout": "timeout",
    "stop_sequences": "stop",
}
"""By the name in other packages, the name here; every host has a few more."""

SHARES = ("min_plausibility", "tuned_plausibility")
"""Short names of fields of `CompositionOptions`."""

WITHOUT_EFFECT = frozenset({"timeout", "keep_alive"})
"""Options that change no answer."""


def _checked_keeping(value: float | str | None) -> float | str | None:
    """Raises InvalidOptionError for what is no duration."""
    if value is not None:
        keep_alive_s(value)
    return value


class CallOptions(SamplingFields):
    """Fields of a model that are keywords of its calls too."""

    reward_weights: RewardWeights = Field(default=None, description="for every pair, or by pair; None: their own")
    call_weight: RewardWeights = Field(
        default=None,
        description="weights for whether and what is called; 0: the base decides. None: those of the answer",
    )
    call_lookahead: int | None = Field(
        default=None, ge=1, description="with call_weight: tokens within which a call must begin; None: 64"
    )
    reasoning_weight: RewardWeights = Field(
        default=None, description="weights inside a thought; None: those of the answer"
    )
    prompt_pairs: dict[str, PromptPair] | None = Field(
        default=None,
        description="prompts as pairs, by name, which reward_weights may name (docs/composition.md); a call's join the model's",
    )
    min_plausibility: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="keep tokens to which the base gives at least this share of its best one's probability; 0: all",
    )
    tuned_plausibility: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="beyond weight 1 lift only tokens to which a pair's tuned model gives at least this share of its best one's "
        "probability; 0: all",
    )
    logprobs: bool | None = Field(default=None, description="report log-probabilities of the tokens")
    top_logprobs: int | None = Field(default=None, description="and of this many alternatives")
    timeout: float | None = Field(default=None, description="seconds until a request is cancelled")
    chat_template_kwargs: dict[str, object] | None = Field(
        default=None, description="variables of the chat template; a call's join the model's"
    )
    reasoning: Annotated[str, BeforeValidator(reasoning_of)] = Field(
        default="auto",
        validation_alias=AliasChoices("reasoning", "reasoning_effort"),
        description="whether the model thinks first: auto (as its template has it), off, or an effort (low, medium, high, ...); "
        "also True, False and OpenAI's forms",
    )
    reasoning_budget: int | None = Field(
        default=None,
        ge=0,
        description="most tokens of a thought; None: no bound, half of max_tokens where JSON must follow",
    )
    reasoning_tags: tuple[str, str] | None = Field(
        default=None, description="the texts around a thought, where the chat template does not show them"
    )
    strict: bool | None = Field(
        default=None,
        description="refuse a schema that cannot be held in full while decoding; otherwise the rest is checked at the end",
    )
    lenient_tool_calls: bool = Field(
        default=True,
        description="take calls that the model writes in another form than its own chat template's; False: they stay text",
    )
    tool_notation: str | None = Field(
        default=None,
        description="how the model writes calls (docs/families.md): hermes, llama3, ...; None: as its template says",
    )
    prompt_options: PromptOptions | None = Field(
        default=None, description="how prompts become tokens: a member's own rendering, whose template, ..."
    )
    composition: CompositionOptions | None = Field(
        default=None,
        description="variants of the composition formula; prompt_pairs, min_plausibility and tuned_plausibility are short for "
        "three of its fields",
    )
    speculation: SpeculationOptions | None = Field(default=None, description="drafting; None: as engine_config says")
    keep_alive: Annotated[float | str | None, BeforeValidator(_checked_keeping)] = Field(
        default=None,
        description='how long the engine stays loaded after a request, if no other follows: seconds, "5m", 0: it is unloaded at '
        "once, -1 or None: for ever",
    )


def asked_composition(model: CallOptions, call: CallOptions) -> CompositionOptions | None:
    """The composition of one call, what has a short name put into it. What the call says goes before what the model says.

    >>> own = CallOptions(composition=CompositionOptions(amplification=2))
    >>> asked_composition(CallOptions(min_plausibility=0.1), own).model_dump(exclude_defaults=True)
    {'amplification': 2.0, 'min_plausibility': 0.1}

    Raises:
        InvalidOptionError: one of them says the same twice and differently.
    """
    whole = call.composition if "composition" in call.model_fields_set else model.composition
    pairs: dict[str, PromptPair] = {}
    shares: dict[str, float] = {}
    for own in (model, call):
        _check_said_once(own)
        if own.composition is not None and own.composition is whole:
            pairs |= own.composition.prompt_pairs
            said = own.composition.model_fields_set
            shares |= {name: getattr(own.composition, name) for name in SHARES if name in said}
        pairs |= own.prompt_pairs or {}
        shares |= {name: share for name in SHARES if (share := getattr(own, name)) is not None}
    short: dict[str, object] = {**({"prompt_pairs": pairs} if pairs else {}), **shares}
    return (whole or CompositionOptions()).model_copy(update=short) if short else whole


def _check_said_once(own: CallOptions) -> None:
    whole = own.composition or CompositionOptions()
    twice: dict[str, object] = {
        f"prompt_pairs.{name}": pair
        for name, pair in (own.prompt_pairs or {}).items()
        if whole.prompt_pairs.get(name, pair) != pair
    }
    for name in SHARES:
        if name in whole.model_fields_set and getattr(own, name) not in (None, getattr(whole, name)):
            twice[name] = getattr(own, name)
    for option, value in twice.items():
        raise errors.InvalidOptionError(
            f"{option}={value!r}: composition has another {option}; give one of them", option=option, value=value
        )


class CallKeywords(CallOptions):
    """All keywords of a call: tools, choices and formats as OpenAI writes them."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = Field(default=None, description="the model's own name, perhaps with weights: name@pair=0.5")
    max_completion_tokens: int | None = Field(default=None, description="OpenAI's newer name of max_tokens")
    tools: list[object] | None = Field(default=None, description="what may be called")
    tool_choice: object = Field(default=None, description="auto, none, required, a tool's name, or OpenAI's mapping")
    parallel_tool_calls: bool | None = Field(default=None, description="False: at most one call per answer")
    response_format: object = Field(default=None, description="text, json_object or json_schema")
    documents: list[dict[str, str]] | None = Field(default=None, description="texts to answer from")

    @classmethod
    def read(cls, keywords: Mapping[str, object]) -> Self:
        """The keywords of a call, checked.

        Raises:
            InvalidOptionError: a keyword is unknown, or its value is of the wrong type.
        """
        try:
            return cls.model_validate(dict(keywords))
        except ValidationError as error:
            finding = error.errors(include_url=False)[0]
            name, value = str(finding["loc"][0]), finding["input"]
            reason = f"{'.'.join(map(str, finding['loc']))}: {finding['msg']}, got {value!r}"
            if finding["type"] == "extra_forbidden":
                reason = f"unknown keyword {name}; a call takes {', '.join(sorted(cls.model_fields))}"
            raise errors.InvalidOptionError(reason, option=name, value=value) from None
