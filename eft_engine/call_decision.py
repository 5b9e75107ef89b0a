"""Whose decision is a call? Weights of their own for whether a tool is called, and what with."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from eft_engine.grammars import Grammar
from eft_engine.options import Options
from eft_engine.weights import MOST_TOKENS, RewardWeights


class Thought(Options):
    """The texts around a thought that may come first. `is_open`: the prompt has begun it."""

    opening: str = Field(min_length=1)
    closing: str = Field(min_length=1)
    is_open: bool = False


class CallDecision(Options):
    """The text begins under `weights`. Once it holds one of `openings` it goes on under them, to its end. If its first `num_tokens`
    hold none, or it ends before, they are thrown away, and it is drawn anew, from random times of their own, under the weights of
    the request and the grammar `otherwise`, which should keep `openings` out.

    Nothing is told to the caller before it is decided. A thought that comes first belongs to neither; it keeps the weights of the
    request, and what is drawn anew begins behind it.
    """

    weights: RewardWeights = Field(default=0.0, description="weights that decide, and under which a call is written")
    openings: tuple[str, ...] = Field(min_length=1, description="texts that only a call has")
    num_tokens: int = Field(default=64, ge=1, le=MOST_TOKENS, description="tokens within which a call must begin")
    otherwise: Grammar | None = Field(
        default=None, discriminator="kind", description="grammar of a whole text that is no call, its thought included"
    )
    thought: Thought | None = Field(default=None, description="what may come before it")

    @field_validator("openings")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(value):
            raise ValueError("a text must not be empty")
        return value

    @field_validator("weights", mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("needs weights; None would be those of the request")
        return value
