"""The attention functions to choose from (`EngineConfig.attention`). A further one is a further line of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from eft_engine.errors import UnsupportedModelError
from eft_engine.models.attention import slot_attention
from eft_engine.models.flash_attention import flash_attention, missing_for_flash
from eft_engine.models.masks import kernel_mask, slot_mask


@dataclass(frozen=True)
class AttentionBackend:
    """One way to compute attention.

    `registered_name` is what transformers knows it by; it must not contain "flash", which makes transformers do as if the function
    were its own. `function` has the signature of `slot_attention`, `mask` that of `slot_mask`. `missing` says in words what a machine or model lacks for it.
    """

    registered_name: str
    function: Callable[..., Any]
    mask: Callable[..., Any]
    missing: Callable[[PreTrainedModel], list[str]]


ATTENTION_BACKENDS: Mapping[str, AttentionBackend] = {
    "sdpa": AttentionBackend("eft", slot_attention, slot_mask, missing=lambda _: []),
    "flash": AttentionBackend("eft_row_lengths", flash_attention, kernel_mask, missing=missing_for_flash),
}


def use_attention(attention: str, model: PreTrainedModel, *, name: str) -> str:
    """Let `model` compute attention this way; returns the name that transformers knows the function by.

    Raises:
        UnsupportedModelError: something is missing for it.
    """
    backend = ATTENTION_BACKENDS[attention]
    missing = backend.missing(model)
    if missing:
        raise UnsupportedModelError(
            f"{name}: attention={attention!r} needs {'; '.join(missing)}. EngineConfig(attention='sdpa') runs everywhere",
            member=name,
        )
    AttentionInterface.register(backend.registered_name, backend.function)
    AttentionMaskInterface.register(backend.registered_name, backend.mask)
    model.set_attn_implementation(backend.registered_name)
    return backend.registered_name
