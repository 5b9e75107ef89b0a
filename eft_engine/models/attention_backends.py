"""The attention functions to choose from (`EngineConfig.attention`). A further one is a further line of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from eft_engine.errors import UnsupportedModelError
from eft_engine.models.attention import slot_attention
from eft_engine.models.flash_attention import flash_attention, missing_for_flash
from eft_engine.models.masks import kernel_mask, redirect_masks, slot_mask
from eft_engine.models.model_files import files_of


@dataclass(frozen=True)
class AttentionBackend:
    """One way to compute attention.

    `registered_name` is what transformers knows it by; it must not contain "flash", which makes transformers do as if the
    function were its own. `function` has the signature of `slot_attention`, `mask` that of `slot_mask`. `missing` says in words
    what a machine or model lacks for it.
    """

    registered_name: str
    function: Callable[..., Any]
    mask: Callable[..., Any]
    missing: Callable[[PreTrainedModel], list[str]]


ATTENTION_BACKENDS: Mapping[str, AttentionBackend] = {
    "sdpa": AttentionBackend("eft", slot_attention, slot_mask, missing=lambda _: []),
    "flash": AttentionBackend("eft_row_lengths", flash_attention, kernel_mask, missing=missing_for_flash),
}


def asks_for_attention(model: PreTrainedModel) -> bool:
    """Whether the model lets transformers choose its attention function."""
    return any(hasattr(file, "ALL_ATTENTION_FUNCTIONS") for file in files_of(model))


class HeldAttention:
    """The attention of a model, computed the engine's way until `give_back`. Models whose attention is code of their own keep
    it, and only their masks are the engine's.

    Args:
        attention: which of `ATTENTION_BACKENDS`.
        model: changed in place.
        name: of the network, for errors.

    Raises:
        UnsupportedModelError: something is missing for it.
    """

    def __init__(self, attention: str, model: PreTrainedModel, *, name: str) -> None:
        held = [getattr(module, "config", None) for module in model.modules()]
        configs = {id(config): config for config in held if isinstance(config, PreTrainedConfig)}
        self._own = [(config, config._attn_implementation) for config in configs.values()]
        self._name: str | None = None
        missing = ATTENTION_BACKENDS[attention].missing(model)
        if not asks_for_attention(model):
            if attention != "sdpa":
                missing = [
                    f"a model that asks for it ({type(model).__name__} computes attention by code of its own)",
                    *missing,
                ]
            redirect_masks()
        else:
            backend = ATTENTION_BACKENDS[attention]
            AttentionInterface.register(backend.registered_name, backend.function)
            AttentionMaskInterface.register(backend.registered_name, backend.mask)
            self._name = backend.registered_name
        if missing:
            raise UnsupportedModelError(
                f"{name}: attention={attention!r} needs {'; '.join(missing)}. EngineConfig(attention='sdpa') runs everywhere",
                member=name,
            )

    def take(self) -> None:
        """Compute it the engine's way."""
        # Not by `set_attn_implementation`: that refuses models that have a part which knows no such function, also where it is
        # not run.
        if self._name is not None:
            for config, _ in self._own:
                config._attn_implementation_internal = self._name

    def give_back(self) -> None:
        """Compute it the model's own way."""
        for config, own in self._own:
            config._attn_implementation_internal = own
