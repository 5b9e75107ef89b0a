"""Rotary frequencies that a GGUF file changes, for torch: transformers' reader passes them over.

Llama 3.1 and later store what each frequency is divided by (`rope_freqs`), which is done here. Other changes (YaRN, LongRoPE,
linear scaling) are refused: without them a model writes, and writes something else.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from eft_engine.errors import CorruptWeightsError
from eft_engine.models.gguf_file import GGUFFile

DIVISORS = "rope_freqs.weight"
LONG_FACTORS = "rope_factors_long.weight"
FACTORS = (LONG_FACTORS, "rope_factors_short.weight")


def unread_scaling(file: GGUFFile) -> str | None:
    """What the file changes that torch would not compute, in a few words; None when there is nothing."""
    kind = file.value("rope.scaling.type", "none")
    factor = file.value("rope.scaling.factor", file.value("rope.scale_linear", 1.0))
    if any(name in file.tensors for name in FACTORS):
        return "it has rotary factors for long texts"
    if kind != "none" and factor != 1.0:
        return f"its rotary positions are scaled ({kind}, factor {factor:g})"
    if file.architecture == "gemma3" and file.value("block_count") == 62:
        return "the 27B model of this family scales its queries otherwise"
    return None


@torch.no_grad()
def divide_frequencies(model: PreTrainedModel, file: GGUFFile, *, member: str) -> None:
    """Divide the model's rotary frequencies by what the file stores, if it stores something.

    Raises:
        CorruptWeightsError: it stores another number of them than the model has.
    """
    tensor = file.tensors.get(DIVISORS)
    if tensor is None:
        return
    values = np.memmap(tensor.path, dtype=np.float32, mode="r", offset=tensor.offset, shape=tensor.shape)
    divisors = torch.from_numpy(np.array(values))
    for name, buffer in model.named_buffers():
        if not name.endswith("inv_freq"):
            continue
        if buffer.shape != divisors.shape or not divisors.isfinite().all() or not divisors.all():
            raise CorruptWeightsError(
                f"{member}: {DIVISORS} of {file.paths[0]} has the shape {list(divisors.shape)} or numbers that nothing can be "
                f"divided by, and {type(model).__name__} has {list(buffer.shape)} rotary frequencies; download it again",
                member=member,
                source=str(file.paths[0]),
            )
        buffer.div_(divisors.to(buffer.device))
