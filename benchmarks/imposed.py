"""Imposed acceptance: a drafter that pays every forward pass of the tuned model, while how often it is right is given.

Random or untuned small models would accept nothing; what a real pair accepts depends on the pair. Imposing the acceptance
separates the engine's speed from that. Figures made this way are labelled so.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from eft_engine import Engine
from eft_engine.engine.drafting import Drafter
from eft_engine.engine.sequence import GenerationSequence
from eft_engine.transfer import upload


class ImposedDrafter(Drafter):
    """Drafts with the tuned model, whose scores then give way to the right token with probability `acceptance`, else a wrong one.

    Args:
        drafter: the engine's own.
        right: for every prompt that is asked, the tokens of its greedy answer.
        acceptance: 0..1.
        seed: of the choice between right and wrong.
    """

    def __init__(
        self, drafter: Drafter, right: Mapping[tuple[int, ...], Sequence[int]], *, acceptance: float, seed: int = 0
    ) -> None:
        super().__init__(drafter._runner, learns=drafter.learns)
        self._right = right
        self._imposed = acceptance
        self._random = random.Random(seed)

    def _draw(self, scores: Tensor, sequences: Sequence[GenerationSequence]) -> tuple[Tensor, Tensor]:
        token_ids = []
        for sequence in sequences:
            right = self._right[sequence.streams[0].prompt_ids]
            position = len(sequence.output_ids) + len(sequence.drafts)
            token_id = right[position] if position < len(right) else 0
            wrong = self._random.random() >= self._imposed
            token_ids.append((token_id + 1) % scores.shape[-1] if wrong else token_id)
        wanted = upload(token_ids, scores.device)[:, None]
        sure = torch.full_like(scores, -torch.inf).scatter_(-1, wanted, 0.0)
        return super()._draw(sure, sequences)


def impose(engine: Engine, right: Mapping[tuple[int, ...], Sequence[int]], acceptance: float) -> None:
    """Let the tuned model's drafts of an engine that has not answered anything yet be right this often."""
    stepper = engine._worker._stepper
    stepper._drafter = ImposedDrafter(stepper._drafter, right, acceptance=acceptance)


def small_model(seed: int, *, vocab_size: int = 49152) -> LlamaForCausalLM:
    """A Llama of 6 layers x 256 with random weights; the default is SmolLM2's vocabulary."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()
