"""Context-aware decoding: an answer keeps to the documents of its prompt rather than to what the model has read before.

    base(with documents) + weight * (base(with documents) - base(without))

Shi et al. 2023, arXiv 2305.14739. With a weight in proportion to how much the two differ it is AdaCAD (Wang et al. 2024, arXiv
2409.07394): `weight=Proportional(to="jensen_shannon")`.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from eft_engine import PromptPair
from eft_engine.prompt_pairs import Side
from eft_engine.weights import Weight


class ContextAwareness(BaseModel):
    """How strongly an answer keeps to its documents. No further weights are held; the prompt without them is read besides."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    weight: Weight = Field(default=0.5, description="0: as the prompt has it; 0.5 to 1 in the paper; may be a schedule")
    min_plausibility: float | None = Field(
        default=None, ge=0.0, le=1.0, description="see CompositionOptions; None: the model's own"
    )
    tuned_plausibility: float | None = Field(
        default=None, ge=0.0, le=1.0, description="see CompositionOptions; None: the model's own"
    )
    model: str = Field(default="base", description="who reads both prompts, see PromptPair")
    pair: str = Field(default="context", min_length=1, description="name of the prompt pair, for reward_weights")

    def _pairs(self, negative: Side) -> dict[str, PromptPair]:
        return {self.pair: PromptPair(negative=negative, model=self.model, weight=self.weight)}

    def keywords(self, negative: Side) -> dict[str, object]:
        """Keywords of a call whose prompt has the documents.

        Args:
            negative: the prompt without them, as `PromptPair` takes it.
        """
        shares = {"min_plausibility": self.min_plausibility, "tuned_plausibility": self.tuned_plausibility}
        said = {name: share for name, share in shares.items() if share is not None}
        return {"prompt_pairs": self._pairs(negative), **said}
