"""What a tuning is asked to do. All of it is written into `tuning.json`, and an interrupted run goes on only with the same."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, FiniteFloat

from eft_engine.options import Options

KeepContent = Literal["off", "hold", "rewrite"]
"""How facts of the training answers are kept out of the delta."""

KEEP_CONTENT: tuple[KeepContent, ...] = get_args(KeepContent)

DEFAULT_KEEP_CONTENT: KeepContent = "off"

LEARNING_RATES = {"sft": 3e-4, "dpo": 5e-5}
"""Highest learning rates where none is given: of an adapter on every linear layer, by what is trained on."""

LORA_ALPHA_PER_RANK = 2
"""The factor on an adapter's product is alpha / rank, so it does not change with the rank."""


class TuningSettings(Options):
    """How an adapter is trained. Defaults are those of `eft tune`."""

    epochs: FiniteFloat = Field(default=3.0, gt=0, description="passes over the training rows, at most")
    learning_rate: FiniteFloat = Field(
        default=LEARNING_RATES["sft"],
        gt=0,
        description="highest learning rate of AdamW; it falls to 0 in a straight line",
    )
    rank: int = Field(default=16, ge=1, description="rank of the adapter on every linear layer but the head")
    batch_size: int = Field(default=8, ge=1, description="rows of one step")
    rows_at_once: int = Field(default=4, ge=1, description="rows of one pass; a step adds up several (less memory)")
    max_length: int = Field(default=1024, ge=2, description="longest row in tokens; longer ones are left out, and told")
    warmup: FiniteFloat = Field(
        default=0.1, ge=0, lt=1, description="share of the steps in which the learning rate rises"
    )
    seed: int = Field(default=0, ge=0, description="seed of the adapter's start, the order, and the split")
    evaluations: int = Field(default=2, ge=1, description="held-out losses and checkpoints in an epoch")
    patience: int = Field(default=3, ge=1, description="held-out losses without a better one before training ends")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of the weights; auto: bfloat16 where the device computes in it"
    )
    keep_content: KeepContent = Field(default=DEFAULT_KEEP_CONTENT, description="how facts stay out of the delta")
    form_weight: FiniteFloat = Field(
        default=3.0, ge=0, description="with hold: factor on the cross-entropy at tokens of the form"
    )
    content_weight: FiniteFloat = Field(
        default=1.0, ge=0, description="with hold: factor on the divergence at tokens of content"
    )
    content_at: FiniteFloat = Field(
        default=4.0, ge=1, description="with hold: weight of the pair at which content stays what the reference says"
    )
    told_weight: FiniteFloat = Field(
        default=1.0, ge=0, description="with hold: factor on the divergence at tokens that are told"
    )
    content_pattern: str | None = Field(
        default=None, description="with hold: a regular expression of what is content in an answer; None: found out"
    )
    beta: FiniteFloat = Field(default=0.1, gt=0, description="of DPO: how dear it is to leave the reference")
    save_memory: bool = Field(default=False, description="compute activations again instead of keeping them")


def rows_of_a_pass(settings: TuningSettings) -> int:
    """The largest number up to `rows_at_once` that divides a step's rows.

    >>> rows_of_a_pass(TuningSettings(batch_size=6, rows_at_once=4)), rows_of_a_pass(TuningSettings(batch_size=2, rows_at_once=4))
    (3, 2)
    """
    most = min(settings.rows_at_once, settings.batch_size)
    return next(rows for rows in range(most, 0, -1) if settings.batch_size % rows == 0)
