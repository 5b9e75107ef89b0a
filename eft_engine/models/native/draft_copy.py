"""A copy of a network in fewer bits that drafts over the network's own slots.

Drafting reads a network's weights once for each draft, and what is drafted is verified in any case. So a copy that has to read a
third of the bytes drafts, where the network itself then reads the drafts in the one pass that verifies them. Keys and values of the
text so far are the network's own: the copy reads no prompt, and has no memory but its weights. What it writes behind them is taken
back before anything else is read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from eft_engine.config import EngineConfig, Quantization
from eft_engine.models.devices import available_memory
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.native.pages import PagedKVCache
from eft_engine.models.native.passes import Passes
from eft_engine.models.native.quantising import held_share
from eft_engine.models.network import Block, Network

LEAST_PARAMETERS = 100_000_000
"""A model of fewer is read so fast that a copy would not help."""

MEMORY_SHARE = 0.25
"""Of what is free, that a copy may have which nobody asked for."""


def draft_quantization(
    model: PreTrainedModel, config: EngineConfig, *, members: Collection[str], quantization: Quantization
) -> Quantization:
    """What `EngineConfig.draft_quantization` comes to for a network that these members have together, whose weights are rounded to
    `quantization` themselves.
    """
    if quantization != "none" or not any(name.endswith(".tuned") for name in members):
        return "none"
    if config.draft_quantization is not None:
        return config.draft_quantization
    num_bytes = held_share("int4", model.dtype) * sum(parameter.nbytes for parameter in model.parameters())
    is_own = "base" not in members and sum(parameter.numel() for parameter in model.parameters()) >= LEAST_PARAMETERS
    return "int4" if is_own and num_bytes <= MEMORY_SHARE * available_memory("cpu") else "none"


class DraftCopy(Network):
    """Made with the network, and gone with it.

    Args:
        network: whose copy it is.
        passes: over the copy's weights.
        cache: of the network.
    """

    kv_cache: PagedKVCache

    def __init__(self, network: LanguageModel, passes: Passes, cache: PagedKVCache) -> None:
        self.name = f"{network.name} (drafting)"
        self.device = network.device
        self.logits_width = network.logits_width
        self.vocab_size = network.vocab_size
        self.context_len = network.context_len
        self.kv_cache = cache
        self._passes = passes
        self._fingerprint = f"{passes.decoder.kind.name} copy of {network.fingerprint}"

    @property
    def fingerprint(self) -> str:
        """See `Network`."""
        return self._fingerprint

    def forward(self, blocks: Sequence[Block]) -> Tensor:
        """See `Network`."""
        return self._passes.read(blocks, self.kv_cache, logits_width=self.logits_width)

    def with_adapter(self, adapter: Path, *, member: str) -> tuple[Network, str | None]:
        """Nobody asks it: adapters are loaded onto the network, and the copy has them too."""
        raise NotImplementedError

    def release(self) -> None:
        """Nothing is its own but the weights."""
