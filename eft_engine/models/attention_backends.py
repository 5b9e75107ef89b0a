"""The attention functions to choose from (`EngineConfig.attention`). A further one is a further line of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import AttentionInterface, PreTrainedModel

from eft_engine.errors import UnsupportedModelError
from eft_engine.models.attention import slot_attention
from eft_engine.models.flash_attention import flash_attention, missing_for_flash


@dataclass(frozen=True)
class AttentionBackend:
    """One way to compute attention.

    `registered_name` is what transformers knows it by; it must not contain "flash", which makes transformers do as if the function
    were its own. `function` has the signature of `slot_attention`. `missing` says in words what a machine or model lacks for it.
    """

    registered_name: str
    function: Callable[..., Any]
    missing: Callable[[PreTrainedModel], list[str]]


ATTENTION_BACKENDS: Mapping[str, AttentionBackend] = {
    "sdpa": AttentionBackend("eft", slot_attention, missing=lambda _: []),
    "flash": AttentionBackend("eft_row_lengths", flash_attention, missing=missing_for_flash),
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
    # On purpose no mask function of this name is registered: then models build no mask of their own.
    AttentionInterface.register(backend.registered_name, backend.function)
    model.set_attn_implementation(backend.registered_name)
    return backend.registered_name
