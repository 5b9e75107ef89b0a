"""The small model as a trainer takes it: read by the engine's own loader, so that the adapter fits what the engine will run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from eft_engine.config import EngineConfig, MemberConfig
from eft_engine.errors import ChatTemplateError, InvalidOptionError
from eft_engine.models.devices import resolve_device
from eft_engine.models.gguf_weights import fast_dtype
from eft_engine.models.loading import load_model
from eft_engine.models.memory_check import check_memory
from eft_engine.models.planning import TrioPlan, plan_trio

ADAPTER_BYTES_PER_PARAMETER = 16
"""Of an adapter while it is trained: the number, its gradient and AdamW's two moments, in float32."""


@dataclass(frozen=True)
class Planned:
    """The small model before its weights are read."""

    name: str
    plan: TrioPlan
    dtype: torch.dtype
    device: str

    @property
    def tokenizer(self) -> Any:
        return self.plan.members["base"].tokenizer

    @property
    def context_len(self) -> int:
        return self.plan.networks["base"].context_len


def plan_reference(reference: str, *, dtype: str, device: str = "auto") -> Planned:
    """What is at a hub id, a folder or a .gguf file; no weights are read.

    Args:
        reference: as `--reference` of every command. Code of a checkpoint is never run, pickles are never opened.
        dtype: of the weights, `auto` for bfloat16 where the device computes in it (elsewhere it is far slower than float32).
        device: `auto`: the first GPU, where there is one.

    Raises:
        LoadError: nothing is there, or it cannot be run.
        InvalidOptionError: several GPUs are visible.
        ChatTemplateError: its tokenizer has no chat template, so nothing says what a chat looks like.
    """
    place = resolve_device(device, member="reference")
    if place == "cuda" and torch.cuda.device_count() > 1:
        raise InvalidOptionError(
            f"{torch.cuda.device_count()} GPUs are visible, and one trains; choose it with CUDA_VISIBLE_DEVICES=0",
            option="device",
            value=device,
        )
    chosen = fast_dtype(place).dtype if dtype == "auto" else getattr(torch, dtype)
    member = MemberConfig(source=reference, runtime="torch", dtype=str(chosen).removeprefix("torch."), device=place)
    plan = plan_trio(member, {}, EngineConfig())
    plan.check_supported()
    if not getattr(plan.members["base"].tokenizer, "chat_template", None):
        raise ChatTemplateError(
            f"reference: the tokenizer of {reference} has no chat template, so nothing says how a chat is written; take the "
            "instruct variant of the model, or copy a chat_template.jinja of its family into its folder"
        )
    return Planned(reference, plan, chosen, place)


def load_reference(planned: Planned) -> Any:
    """The model with its weights, ready for an adapter.

    Raises:
        LoadError: as of the engine; `LoadOutOfMemoryError` before anything is read, where that is foreseeable.
        InvalidOptionError: its weights are quantised in a way that cannot be trained on.
    """
    network = planned.plan.networks["base"]
    check_memory([network])
    model: Any = load_model(network, lambda _: None)
    if getattr(model, "quantization_method", None) is not None and not getattr(model, "is_trainable", True):
        raise InvalidOptionError(
            f"reference: {planned.name} is quantised ({model.quantization_method}) in a way that takes no adapter in training; "
            "give the checkpoint that it was made of, or a .gguf file, which is unpacked"
        )
    model.name_or_path = planned.name  # what PEFT writes into the adapter's configuration
    return model
