"""What a request asks of a composition besides its prompt: weights, prompts as pairs, what counts as plausible, and whose decision
a call is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from eft_engine import PromptPair, TokenIds
from eft_engine.config import CompositionOptions, RewardWeights
from eft_engine.prompt_pairs import Side, Without

SHARES = ("min_plausibility", "tuned_plausibility")
"""What a request may say of the formula."""


class SteeringFields(TypedDict):
    """Fields of `ChatRequest`."""

    reward_weights: RewardWeights
    prompt_pairs: Mapping[str, PromptPair]
    composition: CompositionOptions | None
    call_weight: RewardWeights
    reasoning_weight: RewardWeights
    call_lookahead: int | None


@dataclass(frozen=True)
class Steering:
    """Of one request; None: the composition's own.

    Attributes:
        reward_weights: for every pair of the composition, or by name of a pair or prompt pair.
        prompt_pairs: those that the request brings.
        min_plausibility, tuned_plausibility: see `CompositionOptions`.
        call_weight: for whether and what is called.
        reasoning_weight: for thoughts.
        call_lookahead: tokens within which a call must begin.
    """

    reward_weights: RewardWeights = None
    prompt_pairs: Mapping[str, PromptPair] = field(default_factory=dict)
    min_plausibility: float | None = None
    tuned_plausibility: float | None = None
    call_weight: RewardWeights = None
    reasoning_weight: RewardWeights = None
    call_lookahead: int | None = None

    def fields(self) -> SteeringFields:
        """As a request carries them, before its composition has its say."""
        shares = {name: share for name in SHARES if (share := getattr(self, name)) is not None}
        return SteeringFields(
            reward_weights=self.reward_weights,
            prompt_pairs=self.prompt_pairs,
            composition=CompositionOptions(**shares) if shares else None,
            call_weight=self.call_weight,
            reasoning_weight=self.reasoning_weight,
            call_lookahead=self.call_lookahead,
        )


def most_side_tokens(side: Side, num_prompt_tokens: int, token_ids: Callable[[str], Sequence[int]]) -> int:
    """Most tokens that a side of a prompt pair reads besides the request's own prompt, which has so many.

    >>> most_side_tokens({"system": "a b"}, 10, str.split), most_side_tokens(None, 10, str.split)
    (12, 0)
    """
    match side:
        case None:
            return 0
        case Without():
            return num_prompt_tokens
        case TokenIds(ids=ids):
            return len(ids)
    own = num_prompt_tokens if isinstance(side, Mapping) else 0  # the other messages of the request stay
    return own + sum(len(token_ids(text)) for text in texts_of(side))


def texts_of(side: Side) -> list[str]:
    """The texts that one side of a prompt pair brings with it.

    >>> texts_of({"system": "Be brief."}), texts_of(None), texts_of([{"role": "user", "content": "hi"}])
    (['Be brief.'], [], ['hi'])
    """
    match side:
        case str():
            return [side]
        case Without() | None:
            return []
        case Mapping():
            return [text for text in side.values() if text]
        case list() | tuple():
            return [text for message in side for text in _texts_inside(message.get("content"))]
    return []


def _texts_inside(content: object) -> list[str]:
    match content:
        case str():
            return [content]
        case list():
            return [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    return []
