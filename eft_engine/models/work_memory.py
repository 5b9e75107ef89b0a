"""How much memory computing takes beside weights and caches: out of configurations, so that it can be told before anything is
loaded. Sums of what is alive at once in the largest layer and in composing; what libraries take for themselves is not in them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from eft_engine.config import EngineConfig

HIDDEN_STATES = 8
"""As wide as a layer's output, that are alive at once: residual, norm, queries, keys, values, attended, and copies of them."""

GATED_STATES = 3
"""As wide as a layer's gated part: gates, what they open, and their product."""

SCORES = 10
"""As wide as a distribution, for each row: composed scores, what filters make of them (nuclei are sorted), and noise."""

FLOAT_BYTES = 4


class Reader(Protocol):
    """What reads tokens in a step: a network, or the plan of one."""

    def work_bytes(self, *, num_tokens: int, num_logits: int) -> int:
        """About the most bytes that are alive during a pass, beside weights and caches."""


@dataclass(frozen=True)
class Widths:
    """Numbers of a token in one network.

    Those of its layers are 0 where its memory is taken when it is loaded (llama.cpp), and only logits come.
    """

    logits: int
    hidden: int = 0
    gated: int = 0
    element_bytes: int = FLOAT_BYTES

    def pass_bytes(self, *, num_tokens: int, num_logits: int) -> int:
        """See `Reader.work_bytes`."""
        logits = num_logits * self.logits * (self.element_bytes + FLOAT_BYTES)  # and the same again in float32
        return logits + num_tokens * (HIDDEN_STATES * self.hidden + GATED_STATES * self.gated) * self.element_bytes


def widths_of(model: PreTrainedModel, dtype: torch.dtype) -> Widths:
    """Those of a model, or of its skeleton, computed in `dtype`."""
    logits, hidden = model.get_output_embeddings().weight.shape
    gated = getattr(model.config.get_text_config(), "intermediate_size", None) or 4 * hidden
    return Widths(logits, hidden, max(gated) if isinstance(gated, list | tuple) else gated, dtype.itemsize)


def step_bytes(
    readers: Collection[Reader], config: EngineConfig, *, num_members: int, width: int, num_seqs: int | None = None
) -> int:
    """About the most bytes that are alive during a step, beside weights and caches.

    Args:
        readers: the networks, which read one after another.
        config: how many requests step together, how many tokens are drafted, and how many of a prompt are read at once.
        num_members: whose distributions are composed.
        width: of the distributions.
        num_seqs: requests that step together; None: as many as may.
    """
    drafts = 0 if config.speculation.drafter == "none" else config.speculation.max_draft_tokens
    num_rows = (num_seqs or config.max_num_seqs) * (1 + drafts)
    composing = num_rows * width * FLOAT_BYTES * (num_members + SCORES)
    evaluating = max(reader.work_bytes(num_tokens=num_rows, num_logits=num_rows) for reader in readers)
    prefill = max(reader.work_bytes(num_tokens=config.prefill_chunk_len, num_logits=0) for reader in readers)
    return max(composing + evaluating, prefill)
