"""The body of /v1/score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from eft_integrations.server.bodies.body import Part, unused_of
from eft_integrations.server.bodies.protocol import WeightedBody
from eft_integrations.server.openai.completions_protocol import TokenList, are_ids

CROSS_ENCODERS = ("text_1", "text_2", "queries", "documents", "data_1", "data_2")


def _text_or_ids(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    if isinstance(value, str) or (value != [] and are_ids(value)):
        return value
    raise ValueError("give a text, or a list of token ids that is not empty")


TextOrIds = Annotated[str | TokenList, WrapValidator(_text_or_ids)]


class ScoreItem(Part):
    """A prompt and what stands behind it; both are texts, or both are token ids."""

    prompt: TextOrIds
    continuation: TextOrIds

    @model_validator(mode="after")
    def _one_kind(self) -> ScoreItem:
        if isinstance(self.prompt, str) != isinstance(self.continuation, str):
            raise ValueError("prompt and continuation are both texts, or both token ids")
        return self


class ScoreBody(WeightedBody):
    """POST /v1/score: items, or one prompt with several continuations."""

    items: list[ScoreItem] | None = Field(default=None, min_length=1)
    prompt: TextOrIds | None = None
    continuations: list[TextOrIds] | None = Field(default=None, min_length=1)
    return_tokens: bool = Field(default=False, description="true: every token with its log-probability")
    return_rewards: bool = Field(
        default=False, description="true: the implicit reward of every pair, for which all members are run"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_cross_encoder(cls, values: object) -> object:
        if isinstance(values, Mapping) and (given := [name for name in CROSS_ENCODERS if name in values]):
            raise ValueError(
                f"{given[0]} belongs to servers of cross-encoders, which compare two texts; here a continuation is scored behind a "
                'prompt: {"model": ..., "items": [{"prompt": ..., "continuation": ...}]}'
            )
        return values

    @model_validator(mode="after")
    def _one_form(self) -> ScoreBody:
        has_prompt, has_continuations = self.prompt is not None, self.continuations is not None
        if (self.items is None) != has_prompt or has_prompt != has_continuations:
            raise ValueError("give items, or prompt and continuations")
        return self

    def unused_inside(self) -> Iterator[str]:
        """See `Body`."""
        yield from super().unused_inside()
        for index, item in enumerate(self.items or ()):
            yield from unused_of(f"items.{index}", item.model_extra)

    @property
    def prompt_field(self) -> str:
        """See `Body`."""
        return "prompt" if self.items is None else "items"

    def where(self, index: int) -> str:
        """The field that holds an item's continuation or, for `items`, the item."""
        return f"{'continuations' if self.items is None else 'items'}.{index}"

    @property
    def pairs(self) -> list[ScoreItem]:
        """All items."""
        if self.items is not None:
            return self.items
        return [
            ScoreItem.model_validate({"prompt": self.prompt, "continuation": own}) for own in self.continuations or ()
        ]
