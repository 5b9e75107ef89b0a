"""The weights of a network before they are read: their dtype, how they are held, and how many bytes they take."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig
from transformers.utils import is_kernels_available

from eft_engine.config import MemberConfig
from eft_engine.models.gguf_file import GGUFFile
from eft_engine.models.quantised import (
    UNPACKED_IN_THE_FIRST_PASS,
    Quantisation,
    estimated_bytes,
    quantisation_of,
    settle,
)
from eft_engine.models.stored import StoredWeights, read_stored
from eft_engine.models.text_model import TextModel
from eft_engine.models.towers import num_parameters


@dataclass(frozen=True)
class WeightPlan:
    """How weights will be held, and how they are stored."""

    dtype: torch.dtype
    """Of everything that is not packed; the network computes in it."""
    type_name: str
    """For people: the dtype, or how they are packed (`4-bit (bitsandbytes nf4)`)."""
    held_bytes: int
    """In memory (single tensors that a family keeps in float32 aside)."""
    left_out_bytes: int
    """Of the checkpoint, what is not read."""
    stored_bytes: int
    """Of everything that the checkpoint holds, for whoever keeps packed weights packed."""
    notes: tuple[str, ...] = ()
    problem: str | None = None
    """Why they cannot be held; None: nothing is known against it."""


def plan_weights(
    text: TextModel, config: PreTrainedConfig, *, location: str, member: MemberConfig, requested: str, device: str
) -> WeightPlan:
    """Of a checkpoint in safetensors. Headers are read where configuration and options do not say it all.

    Args:
        text: what runs of the checkpoint.
        config: of the checkpoint.
        location: its folder or hub id.
        member: the options of who uses it.
        requested: a dtype's name, or `auto`: as the checkpoint says, or is stored.
        device: where the network is to lie.
    """
    quantisation = quantisation_of(config, member.quantization_config)
    named = config.dtype or text.config.get_text_config().dtype
    stored = None
    if (quantisation is not None and quantisation.is_stored) or (requested == "auto" and named is None):
        file_name = getattr(config, "transformers_weights", None)
        stored = read_stored(location, revision=member.revision, file_name=file_name)
    dtype, notes = (getattr(torch, requested), ()) if requested != "auto" else _auto_dtype(named, stored)
    if quantisation is None:
        return _plain(text, dtype, notes)
    outcome = settle(
        quantisation,
        config,
        member.quantization_config,
        dtype=dtype,
        device=device,
        device_map=member.device_map,
    )
    if outcome.dtype != dtype:
        notes = (
            *notes,
            f"computed in {_name(outcome.dtype)}, as {quantisation.method} needs it, and not in {_name(dtype)}",
        )
    return _packed(text, quantisation, stored, outcome.dtype, notes, unpacks=outcome.unpacks, problem=outcome.problem)


def plan_gguf_weights(text: TextModel, file: GGUFFile, *, member: MemberConfig, dtype: torch.dtype) -> WeightPlan:
    """Of a GGUF file in torch: unpacked, unless transformers is asked to leave them packed and can."""
    asked = member.quantization_config
    plain = _plain(text, dtype, ())
    if asked is None or getattr(asked, "dequantize", False) or not is_kernels_available():
        return plain
    note = "packed as in the file, as far as transformers has kernels for it"
    return WeightPlan(dtype, file.type_name, file.tensor_bytes, plain.left_out_bytes, file.tensor_bytes, (note,))


def _auto_dtype(named: torch.dtype | None, stored: StoredWeights | None) -> tuple[torch.dtype, tuple[str, ...]]:
    """What a checkpoint is held in where nobody asks for a dtype, and what is to be told about it."""
    if named is not None:
        return named, ()
    shares = list(stored.float_shares.items()) if stored is not None else []
    if not shares:
        return torch.float32, ("float32, since neither its configuration nor its files name a floating dtype",)
    (dtype, share), others = shares[0], shares[1:]
    mixed = (
        f" ({share:.0%} of their bytes; others are stored in {', '.join(_name(own) for own, _ in others)})"
        if others
        else ""
    )
    return dtype, (f"{_name(dtype)}, as its weights are stored{mixed}: its configuration names no dtype",)


def _plain(text: TextModel, dtype: torch.dtype, notes: tuple[str, ...]) -> WeightPlan:
    held = num_parameters(text.skeleton) * dtype.itemsize
    left_out = sum(text.left_out.values()) * dtype.itemsize
    return WeightPlan(dtype, _name(dtype), held, left_out, held + left_out, notes)


def _packed(
    text: TextModel,
    quantisation: Quantisation,
    stored: StoredWeights | None,
    dtype: torch.dtype,
    notes: tuple[str, ...],
    *,
    unpacks: bool,
    problem: str | None,
) -> WeightPlan:
    plain = _plain(text, dtype, notes)
    if stored is not None:
        held = stored.held_bytes(dtype=dtype, converted=_names(text).__contains__, read=_is_read(text, stored))
        left_out = stored.num_bytes - stored.held_bytes(dtype=dtype, converted=_never, read=_is_read(text, stored))
        whole = stored.num_bytes
    else:
        held, left_out = estimated_bytes(quantisation, text.skeleton, dtype), plain.left_out_bytes
        whole = held + left_out
        notes = (*notes, _estimate_note(quantisation))
    if not unpacks:
        return WeightPlan(dtype, quantisation.label, held, left_out, whole, notes, problem)
    when = "in the first pass" if quantisation.method == UNPACKED_IN_THE_FIRST_PASS else "while they are read"
    note = f"stored as {quantisation.label} ({whole / 2**20:,.1f} MiB): transformers unpacks the weights {when}"
    return WeightPlan(dtype, _name(dtype), plain.held_bytes, left_out, whole, (*notes, note), problem)


def _estimate_note(quantisation: Quantisation) -> str:
    why = "the headers of its files are not at hand" if quantisation.is_stored else "packed while they are read"
    if quantisation.bits is None:
        return f"bytes counted as if nothing were packed: {why}, and the configuration of {quantisation.method} tells no bits"
    return f"bytes estimated from the {quantisation.bits:g} bits of a number: {why}"


def _never(name: str) -> bool:
    return False


def _names(text: TextModel) -> set[str]:
    return {name for name, _ in text.skeleton.named_parameters(remove_duplicate=False)}


def _is_read(text: TextModel, stored: StoredWeights) -> Callable[[str], bool]:
    """Which tensors are: not those of towers, nor those that the class passes over, nor one that is another's, stored again."""
    towers = [f".{name.rsplit('.', 1)[-1]}." for name in text.left_out]
    passed_over = [re.compile(own) for own in text.skeleton._keys_to_ignore_on_load_unexpected or ()]
    tied: dict[str, str] = getattr(text.skeleton, "all_tied_weights_keys", None) or {}

    def is_read(name: str) -> bool:
        return (
            not any(tower in f".{name}" for tower in towers)
            and not any(own.search(name) for own in passed_over)
            and tied.get(name) not in stored.tensors
        )

    return is_read


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
