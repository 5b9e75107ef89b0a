"""Adapters that were trained on a larger vocabulary: the network gets as many rows as the file has."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from eft_engine.errors import CorruptWeightsError, UnsupportedAdapterError
from eft_engine.models.adapter_folder import AdapterFolder

WHOLE = ("weight", "base_layer.weight", "modules_to_save.weight")
"""What PEFT calls a whole matrix of embeddings that it saves."""


def resize_vocabulary(model: PreTrainedModel, adapter: AdapterFolder, *, member: str) -> None:
    """Give `model` the vocabulary that the adapter's file was saved with, if it tells one; values come from the file later.

    Args:
        model: changed in place.
        adapter: with the shapes of its weights.
        member: whose it is, for messages.

    Raises:
        CorruptWeightsError: the file has several sizes.
        UnsupportedAdapterError: it has parts of more rows, and not what they are added to.
    """
    ends = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
    names = {end: _name_of(model, module) for end, module in ends.items()}
    rows: dict[str, int] = {}
    whole: set[str] = set()
    for key, shape in adapter.shapes.items():
        for end, name in names.items():
            _, found, part = f".{key}".rpartition(f".{name}.")
            if not found or len(shape) != 2:
                continue
            if part in WHOLE:
                rows[key] = shape[0]
                whole.add(end)
            elif part == "lora_embedding_A":
                rows[key] = shape[1]
            elif part == "lora_B.weight" and end == "output":
                rows[key] = shape[0]
    sizes = set(rows.values())
    current = ends["input"].weight.shape[0]
    if not sizes - {current}:
        return
    if len(sizes) > 1:
        told = ", ".join(f"{key} has {number}" for key, number in rows.items())
        raise CorruptWeightsError(
            f"{member}: the adapter in {adapter.path} has vocabularies of several sizes: {told}",
            member=member,
            source=str(adapter.path),
        )
    [size] = sizes
    is_tied = ends["output"].weight is ends["input"].weight
    needed = {"input"} if is_tied else {"input", "output"}
    if size > current and not needed & whole == needed and not (is_tied and whole):
        raise UnsupportedAdapterError(
            f"{member}: the adapter in {adapter.path} is for a vocabulary of {size} tokens and the network has {current}; the file "
            "does not hold the embeddings and the output rows of the others. Save it with save_embedding_layers=True, or save the "
            "resized model and give that as the source",
            member=member,
            source=str(adapter.path),
        )
    model.resize_token_embeddings(size, mean_resizing=False)


def _name_of(model: nn.Module, module: nn.Module) -> str:
    names: dict[int, str] = {id(child): name for name, child in model.named_modules()}
    return names[id(module)]
