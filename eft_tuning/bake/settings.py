"""How a composition is baked: sampling, the adapter, training. Frozen; wrong values raise `InvalidOptionError`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from eft_engine.config import CompositionOptions, Options, PromptOptions, RewardWeights
from eft_tuning.bake.divergence import Divergence


class BakeSettings(Options):
    """What is distilled, out of which texts, into what."""

    reward_weights: RewardWeights = Field(default=None, description="weights of the composition; None: the pairs' own")
    composition: CompositionOptions = Field(
        default_factory=CompositionOptions, description="prompt pairs and variants of the formula"
    )
    prompt_options: PromptOptions = Field(
        default_factory=PromptOptions, description="how the composition reads prompts; the adapter learns the base's"
    )
    template: Literal["composition", "base"] = Field(
        default="composition",
        description="which chat template the adapter learns to answer behind: the one that the base reads in the composition, or "
        "its own, where a server has only that one",
    )
    num_samples: int = Field(default=1, ge=1, description="answers of the composition to each prompt")
    temperature: float = Field(
        default=1.0, ge=0.0, allow_inf_nan=False, description="of these answers; 1: as the composition writes them"
    )
    max_tokens: int = Field(default=128, ge=1, description="longest answer")
    top_k: int = Field(default=64, ge=1, description="tokens told at each position; all others are one bucket")
    rank: int = Field(default=16, ge=1, description="rank of the adapter (vLLM serves 16 unasked)")
    alpha: int = Field(default=32, ge=1, description="numerator of the adapter's scale, alpha / rank")
    target_modules: str | tuple[str, ...] = Field(
        default="all-linear", description="layers that get an adapter; all-linear: all but the output head"
    )
    epochs: float = Field(default=3.0, gt=0.0, allow_inf_nan=False, description="passes over the answers")
    learning_rate: float = Field(
        default=5e-4, gt=0.0, allow_inf_nan=False, description="highest one; falls as a cosine"
    )
    batch_size: int = Field(default=8, ge=1, description="answers in a step")
    rows_at_once: int = Field(default=8, ge=1, description="answers in one pass; a step adds up several (less memory)")
    rounds: int = Field(
        default=0,
        ge=0,
        description="afterwards, so often: the adapter answers, the composition scores, it learns from that",
    )
    divergence: Divergence = Field(default="forward", description="what is minimised in the first pass")
    round_divergence: Divergence = Field(default="reverse", description="what is minimised on its own answers")
    patience: int = Field(
        default=2, ge=0, description="epochs without improvement on held-out prompts after which it stops; 0: never"
    )
    held_out_share: float = Field(
        default=0.1, ge=0.0, lt=1.0, description="of the prompts, where no file of held-out ones is given"
    )
    num_speed: int = Field(default=8, ge=0, description="held-out prompts with which speed is measured, one by one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="of the base in training; auto: bfloat16 where the device computes in it, else float32",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="of split, answers, first weights and order")
