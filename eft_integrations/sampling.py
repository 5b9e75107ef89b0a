"""The one list of sampling fields: their names, and a model of them in which every field may be left out."""

from __future__ import annotations

from pydantic import BaseModel, Field

from eft_engine import SamplingParams
from eft_integrations.json_types import JsonObject

OF_THE_CHAT_LAYER = frozenset({"grammar", "skip_special_tokens"})
"""Fields that follow from the rest of a request."""

SAMPLING_FIELDS = frozenset(SamplingParams.model_fields) - OF_THE_CHAT_LAYER
"""Names that `ChatRequest.sampling` may hold."""


class SamplingFields(BaseModel):
    """Fields of `SamplingParams` as hosts' models, calls and bodies have them: None says nothing, the engine checks ranges.

    `logprobs` is missing, because each host has its own way to ask for them.
    """

    max_tokens: int | None = Field(default=None, description="most tokens to generate")
    temperature: float | None = Field(default=None, description="0: always the most probable token")
    top_k: int | None = Field(default=None, description="keep the k most probable tokens; 0: all")
    top_p: float | None = Field(default=None, description="keep the smallest set with at least this probability")
    min_p: float | None = Field(default=None, description="drop tokens below this share of the most probable one")
    repetition_penalty: float | None = Field(default=None, description="divides the scores of seen tokens")
    presence_penalty: float | None = Field(default=None, description="subtracted once per token already generated")
    frequency_penalty: float | None = Field(default=None, description="subtracted per occurrence already generated")
    logit_bias: dict[int, float] | None = Field(default=None, description="token id -> value added to its score")
    seed: int | None = Field(default=None, description="same seed, same text; answer i of several uses seed + i")
    stop: str | list[str] | None = Field(default=None, description="strings that end the text")
    stop_token_ids: list[int] | None = Field(default=None, description="token ids that end the text")
    ignore_eos: bool | None = Field(default=None, description="go on after an end-of-sequence token")
    close_within_budget: bool | None = Field(
        default=None,
        description="bring JSON of a schema to an end inside max_tokens (the answer says so); a tool call is never brought to one",
    )


def given_sampling(fields: SamplingFields) -> dict[str, object]:
    """Those that say something, for `ChatRequest.sampling`.

    >>> given_sampling(SamplingFields(temperature=0.0, top_k=None))
    {'temperature': 0.0}
    """
    return {name: value for name in SamplingFields.model_fields if (value := getattr(fields, name)) is not None}


def stops_of(fields: SamplingFields) -> list[str]:
    """The stop strings, of which one may be written without its list."""
    return [fields.stop] if isinstance(fields.stop, str) else fields.stop or []


def sampling_form(sampling: SamplingParams) -> JsonObject:
    """The fields of `SamplingFields` as JSON, for backends that send them somewhere under the same names.

    >>> sampling_form(SamplingParams(stop="x", top_k=3))["stop"], "logprobs" in sampling_form(SamplingParams())
    (['x'], False)
    """
    form: JsonObject = sampling.model_dump(mode="json", include=set(SamplingFields.model_fields))
    return form
