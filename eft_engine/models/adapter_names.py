"""Adapters that were trained when a family's modules had other names: their keys as transformers calls them today."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

PREFIX = "base_model.model."
"""What PEFT writes before a network's own names."""


def names_of_today(model: PreTrainedModel, keys: Iterable[str]) -> dict[str, str]:
    """What each key of an adapter's file is called in `model`: renamed as transformers renames weights of checkpoints, where that
    leads nearer to a module than the key as it is.
    """
    entries = [entry for entry in get_model_conversion_mapping(model) if isinstance(entry, WeightRenaming)]
    found: dict[str, str] = {}
    for key in keys:
        own = key.removeprefix(PREFIX)
        renamed = rename_source_key(own, entries, [])[0] if own != key else own
        found[key] = PREFIX + renamed if _depth(model, renamed) > _depth(model, own) else key
    return found


def _depth(model: nn.Module, name: str) -> int:
    """How many parts of a name lead to modules."""
    module = model
    for depth, part in enumerate(name.split(".")):
        child = module._modules.get(part)
        if child is None:
            return depth
        module = child
    return len(name.split("."))
