"""A network of its own for a member whose adapter cannot share one: PEFT puts the adapter in, and merges it.

Where PEFT has no way to merge a kind, or where merging says something else than the adapter does beside the weights, the network
keeps PEFT's layers, switched on. Either way what runs is what PEFT's own forward pass says, tried before anybody relies on it.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eft_engine.errors import UnsupportedAdapterError
from eft_engine.models.adapter_folder import AdapterFolder
from eft_engine.models.adapter_layers import attach, merge
from eft_engine.models.memory import is_out_of_memory
from eft_engine.models.self_check import TOLERANCES

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

TEXT = (3, 10, 17, 24, 31, 38)
"""Ids of the text that both are asked about."""


@dataclass(frozen=True)
class TunedModel:
    """A model with an adapter inside. `is_merged`: it has the layers that its class says; else those of PEFT around them."""

    model: PreTrainedModel
    is_merged: bool


def with_adapter_inside(
    load: Callable[[], PreTrainedModel],
    adapter: AdapterFolder,
    *,
    member: str,
) -> TunedModel:
    """Load a model and put an adapter into its weights.

    Args:
        load: reads the model without the adapter; called again where merging failed half-way.
        adapter: what it is.
        member: whose it is, for messages.

    Raises:
        CorruptWeightsError: the adapter is damaged or not one for this model.
        UnsupportedAdapterError: PEFT's wrapper says something else than the model inside it.
    """
    tensors = adapter.tensors(member=member)
    wrapped, _ = attach(load(), adapter, tensors, member=member)
    own = _logits(wrapped)
    try:
        merged = merge(wrapped)
        if _is_same(_logits(merged), own):
            return TunedModel(merged, is_merged=True)
        reason = "merged it says something else than beside the weights"
        del merged
    except Exception as error:  # each kind has its own way to say that it cannot
        if is_out_of_memory(error):
            raise
        reason = f"PEFT does not merge it: {error}"
    logger.info("%s: the adapter in %s is held as layers of PEFT: %s", member, adapter.path, reason)
    del wrapped
    gc.collect()  # PEFT's layers and wrappers know each other
    wrapped, _ = attach(load(), adapter, tensors, member=member)
    model: PreTrainedModel = wrapped.get_base_model()
    if not _is_same(_logits(model), own):
        raise UnsupportedAdapterError(
            f"{member}: the adapter in {adapter.path} ({adapter.kind}) is more than a change of layers: inside PEFT's wrapper the "
            "model says something else than by itself",
            member=member,
            source=str(adapter.path),
        )
    return TunedModel(model, is_merged=False)


@torch.inference_mode()
def _logits(model: PeftModel | PreTrainedModel) -> Tensor:
    """Logits `[tokens, width]` of a short text, as the model computes them by itself."""
    weight = model.get_input_embeddings().weight
    ids = torch.tensor([[token_id % min(1000, len(weight)) for token_id in TEXT]], device=weight.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits[0]


def _is_same(logits: Tensor, own: Tensor) -> bool:
    """NaN is for the self-check of the network to tell."""
    if not own.isfinite().all():
        return True
    return bool((logits - own).abs().max() <= TOLERANCES.get(own.dtype, 0.1) * own.abs().max())
