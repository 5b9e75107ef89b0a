"""Reading texts over slots in pieces, side by side, and the same model without a cache as the judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eft_engine.models.language_model import LanguageModel
from eft_engine.models.network import Block, KVSlot


@dataclass
class Reader:
    """A network and its judge, of equal weights; `worst` is the largest difference so far, relative to the largest logit."""

    network: LanguageModel
    plain: PreTrainedModel
    worst: float = 0.0
    texts: dict[KVSlot, list[int]] = field(default_factory=dict)

    def start(self, *, least_len: int = 0) -> KVSlot:
        """An empty slot."""
        slot = self.network.kv_cache.allocate()
        slot.least_len = least_len
        self.texts[slot] = []
        return slot

    def read(self, *pieces: tuple[KVSlot, Sequence[int]], drafts: int = 0) -> None:
        """One pass; every token's logits are compared. The last `drafts` tokens of each piece may be taken back."""
        blocks = [Block(slot, list(ids), len(ids), num_provisional=min(drafts, len(ids))) for slot, ids in pieces]
        said = self.network.forward(blocks)
        for (slot, ids), own in zip(pieces, said.split([len(ids) for _, ids in pieces]), strict=True):
            self.texts[slot] += ids
            assert slot.length == len(self.texts[slot])
            for place in range(len(ids)):
                text = self.texts[slot][: slot.length - len(ids) + place + 1]
                # A text that is to be longer has been read for that from the start.
                text_len = max(len(text), slot.least_len)
                expected = self.expected([*text, *[0] * (text_len - len(text))])[len(text) - 1]
                difference = (own[place] - expected).abs().max() / expected.abs().max()
                self.worst = max(self.worst, difference.item())

    def keep_length(self, slot: KVSlot, length: int) -> None:
        """Take back what is behind."""
        slot.truncate(length)
        del self.texts[slot][length:]

    @torch.inference_mode()
    def expected(self, token_ids: Sequence[int]) -> Tensor:
        """Logits `[len(token_ids), vocab]` of a text read alone."""
        logits: Tensor = self.plain(torch.tensor([list(token_ids)]), use_cache=False).logits[0]
        return logits


def some_ids(count: int, *, start: int = 0, vocab_size: int = 60) -> list[int]:
    """Tokens that differ from one start to the next."""
    return [(7 * index * index + 11 * start + 3 * index) % vocab_size for index in range(count)]
