"""Prompts as pairs: what a model says with one prompt against what it says with another.

    base(prompt) + weight * (model(positive) - model(negative))                          log-probabilities

With the base as the model and the request's own prompt as the positive side this is classifier-free guidance of language models
(Sanchez et al. 2023, arXiv 2306.17806; their guidance scale is 1 + weight), and with a negative side that lacks the documents
context-aware decoding (Shi et al. 2023, arXiv 2305.14739). No further weights are held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator, model_validator

from eft_engine.errors import InvalidOptionError
from eft_engine.options import Options
from eft_engine.prompts import TokenIds
from eft_engine.weights import Weight


class Without(Options):
    """The request's own prompt without some texts, as the passages of a RAG application: each is taken out wherever it stands."""

    texts: tuple[str, ...] = Field(min_length=1, description="what is taken out")

    @field_validator("texts")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(text.strip() for text in value):
            raise ValueError("a text to take out must not be empty")
        return value


Side = str | TokenIds | Without | Mapping[str, str | None] | Sequence[Mapping[str, Any]] | None
"""One side of a prompt pair:

    None                     the request's own prompt
    {"system": "..."}        the request's own messages with another text in every message of a role; a system message that is
                             not there comes first, None takes the messages of the role away
    Without(texts=[...])     the request's own prompt without these texts
    [{"role": ...}, ...]     whole messages
    "...", TokenIds(...)     a raw prompt
"""


_KINDS: Mapping[frozenset[str], type[Without | TokenIds]] = {
    frozenset(("texts",)): Without,
    frozenset(("ids",)): TokenIds,
}
"""What a mapping with these names is."""


class PromptPair(Options):
    """One behaviour, as two prompts of one model: `positive` strengthens, `negative` is what to get away from.

    At least one side is given; the other is the request's own prompt.
    """

    positive: Side = Field(default=None, description="what to get closer to; None: the request's own prompt")
    negative: Side = Field(default=None, description="what to get away from; None: the request's own prompt")
    model: str = Field(
        default="base",
        description="who reads them: base, a pair (its tuned model), or a member such as chat.reference",
        min_length=1,
    )
    weight: Weight = Field(default=1.0, description="weight of the behaviour, unless the call names another")

    @field_validator("positive", "negative", mode="before")
    @classmethod
    def _is_side(cls, value: object) -> object:
        if isinstance(value, Mapping):
            if kind := _KINDS.get(frozenset(value)):
                try:
                    return kind(**value)
                except InvalidOptionError as error:
                    raise ValueError(str(error)) from None
            if not value or not all(isinstance(text, str | None) for text in value.values()):
                raise ValueError("as a mapping it has a text (or None) by role")
        elif not isinstance(value, str | TokenIds | Without | Sequence | None):
            raise ValueError("must be a text, messages, a mapping of roles to texts, TokenIds or Without")
        return value

    @model_validator(mode="after")
    def _has_a_side(self) -> PromptPair:
        if self.positive is None and self.negative is None:
            raise ValueError("needs a side: positive=..., negative=..., or both")
        return self
