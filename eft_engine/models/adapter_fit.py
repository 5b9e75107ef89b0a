"""Whether an adapter of PEFT fits a network, and whether it can be switched per row there.

It is tried on the network without numbers (on the meta device), with the header of the adapter's file, by what will load it later
(see `adapter_layers`): so a wrong adapter is refused before any weight is read.

    shared   the adapter adds `scaling * B(A(x))` to linear layers and nothing else: members with and without it are one network
    own      it changes what members without it need too: they are two networks (see `merged`)
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from eft_engine.models.adapter_errors import first, unsupported
from eft_engine.models.adapter_folder import AdapterFolder
from eft_engine.models.adapter_kinds import beyond_lora, doubts, why_never
from eft_engine.models.adapter_layers import NeedsNumbersError, as_named_here, attach, merge, peft_config
from eft_engine.models.adapter_names import PREFIX
from eft_engine.models.vocabulary_rows import resize_vocabulary

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class AdapterFit:
    """How an adapter is held by a network.

    `why_own`: why the network has to be its own; None: rows with and without the adapter can share it. `skeleton` is what the
    network holds, on the meta device, and `is_merged` whether an adapter was merged into that; some kinds need numbers to tell.
    `notes` are sentences for people.
    """

    why_own: str | None
    skeleton: PreTrainedModel
    is_merged: bool
    notes: tuple[str, ...] = ()


def fit_adapter(skeleton: PreTrainedModel, adapter: AdapterFolder, *, member: str, own: bool = False) -> AdapterFit:
    """Try an adapter on a network without numbers.

    Args:
        skeleton: on the meta device; it is not changed.
        adapter: with the shapes of its weights.
        member: whose it is, for messages.
        own: whether an own network is asked for.

    Raises:
        CorruptWeightsError: the adapter is not one for this network.
        UnsupportedAdapterError: no network can hold it.
    """
    reason = why_never(adapter.config)
    if reason is not None:
        raise unsupported(adapter, member, [reason])
    adapter, tensors = as_named_here(skeleton, adapter, adapter.skeleton())
    whole = copy.deepcopy(skeleton)
    why, notes = beyond_lora(adapter.config), (*doubts(adapter.config), *_ignored_settings(adapter, member))
    try:
        wrapped, ignored = attach(whole, adapter, tensors, member=member)
    except NeedsNumbersError:  # PEFT looks at weights while it makes layers of this kind; loading will try
        why = why or [f"it is of type {adapter.kind}"]
        return AdapterFit("; ".join(why), _resized(skeleton, adapter, member), is_merged=False, notes=notes)
    if ignored:
        notes = (*notes, f"{len(ignored)} weights of the adapter are for parts that text never uses: not read")
    why = why or why_not_per_row(wrapped, adapter) or (["merge=True was asked for"] if own else [])
    if not why:
        return AdapterFit(None, skeleton, is_merged=False, notes=notes)
    held, is_merged = _held(wrapped)
    return AdapterFit("; ".join(why), held, is_merged, notes)


def _resized(skeleton: PreTrainedModel, adapter: AdapterFolder, member: str) -> PreTrainedModel:
    model = copy.deepcopy(skeleton)
    resize_vocabulary(model, adapter, member=member)
    return model


def _held(wrapped: PeftModel) -> tuple[PreTrainedModel, bool]:
    """What an own network is, and whether it is merged: where PEFT cannot do that, or not without numbers, it has PEFT's layers."""
    try:
        return merge(copy.deepcopy(wrapped)), True
    except (NotImplementedError, RuntimeError, ValueError):
        return wrapped.get_base_model(), False


def _ignored_settings(adapter: AdapterFolder, member: str) -> tuple[str, ...]:
    """Settings that this version of PEFT does not know, as it goes on without them."""
    known = vars(peft_config(adapter, member=member))
    unknown = {
        key: value for key, value in adapter.config.items() if key not in known and value and key != "runtime_config"
    }
    if not unknown:
        return ()
    return (
        f"settings of the adapter that the installed PEFT does not know, and goes on without: {json.dumps(unknown)}",
    )


def why_not_per_row(wrapped: PeftModel, adapter: AdapterFolder) -> list[str]:
    """Reasons, told from the layers that PEFT made, why rows with and without the adapter cannot share them."""
    from peft.tuners.lora.layer import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = wrapped.get_base_model()
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    others: dict[str, None] = {}
    chosen: list[str] = []
    whole = [key.removeprefix(PREFIX) for key in adapter.shapes if ".lora_" not in key]
    at_the_ends = False
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        if any(layer is end or layer.get_base_layer() is end for end in ends):
            at_the_ends = True
        elif not isinstance(layer, Linear) or not is_plain(layer, "default"):
            others[type(layer).__name__] = None
        elif _lists_above(model, name) > 1:
            chosen.append(name)
    return [
        reason
        for found, reason in (
            (at_the_ends, "it changes the embeddings or the output layer"),
            (others, f"it adds more to its layers ({', '.join(others)}) than B(A(x))"),
            (chosen, f"it changes layers that see a choice of the tokens ({', '.join(first(chosen))})"),
            (whole, f"it holds whole weights ({', '.join(first(whole))})"),
        )
        if found
    ]


def is_plain(layer: Any, name: str) -> bool:
    """Whether an adapter, where it touches the layer, adds `scaling * B(A(x))` and nothing else."""
    if name in layer.lora_variant or name in layer.lora_embedding_A:
        return False
    return name not in layer.lora_A or isinstance(layer.lora_A[name], nn.Linear)


def _lists_above(model: nn.Module, name: str) -> int:
    """How many lists of modules a module stands in: one is the list of layers, another one inside has experts of a layer."""
    parts = name.split(".")
    above = (model.get_submodule(".".join(parts[:length])) for length in range(1, len(parts)))
    return sum(isinstance(module, (nn.ModuleList, nn.ModuleDict)) for module in above)
