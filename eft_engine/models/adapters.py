"""LoRA adapters on a network, switched per row of a batch.

The rows of one forward pass may belong to different members: some with an adapter, some without. PEFT's LoRA layers can do that
when they are told each row's adapter (`adapter_names`); hooks hand them the names of the current pass.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from eft_engine.errors import CorruptWeightsError, UnsafeWeightsError, UnsupportedAdapterError

NO_ADAPTER = "__base__"
"""PEFT's name for "this row uses no adapter"."""


class AdapterSwitch:
    """Holds the adapters of one network and tells its LoRA layers which row uses which."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._rows: list[str] | None = None
        self._hooks: list[Any] = []
        self.names: list[str] = []

    def add(self, folder: Path, *, member: str) -> str:
        """Load an adapter from `folder` (adapter_config.json and adapter_model.safetensors); returns its name.

        Raises:
            UnsafeWeightsError, CorruptWeightsError, UnsupportedAdapterError: see `check_adapter`.
        """
        check_adapter(folder, member=member)
        name = f"adapter_{len(self.names)}"
        try:
            self._model.load_adapter(str(folder), adapter_name=name)
        except Exception as error:  # whatever PEFT finds wrong with these files means the same to the user
            raise CorruptWeightsError(
                f"{member}: the adapter in {folder} does not load onto {type(self._model).__name__}: {error}",
                member=member,
                source=str(folder),
            ) from error
        self.names.append(name)
        self._model.eval()
        self._hook_new_layers()
        return name

    def _hook_new_layers(self) -> None:
        from peft.tuners.lora import LoraLayer  # takes a while to import, and most trios have no adapter

        self.remove_hooks()
        for module in self._model.modules():
            if isinstance(module, LoraLayer):
                self._hooks.append(module.register_forward_pre_hook(self._add_names, with_kwargs=True))

    def _add_names(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        return (args, {**kwargs, "adapter_names": self._rows}) if self._rows is not None else None

    def set_rows(self, adapters: Sequence[str | None] | None) -> None:
        """Each row's adapter in the next forward pass; None as a whole leaves PEFT to itself."""
        self._rows = None if adapters is None else [name or NO_ADAPTER for name in adapters]

    def num_bytes(self, name: str) -> int:
        """Bytes of one adapter's weights."""
        return sum(parameter.nbytes for key, parameter in self._model.named_parameters() if f".{name}." in f"{key}.")

    def remove_hooks(self) -> None:
        """Give the layers back as PEFT made them."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def remove(self) -> None:
        """Take all adapters off the network."""
        self.remove_hooks()
        for name in self.names:
            self._model.delete_adapter(name)
        self.names.clear()


def check_adapter(folder: Path, *, member: str) -> dict[str, Any]:
    """The adapter's configuration, if the engine can switch it per row.

    Raises:
        UnsafeWeightsError: there are only pickled weights.
        CorruptWeightsError: files are missing or unreadable.
        UnsupportedAdapterError: not a plain LoRA, or it touches embeddings or the output layer.
    """
    source = str(folder)
    weights = folder / "adapter_model.safetensors"
    if not weights.exists():
        if (folder / "adapter_model.bin").exists():
            raise UnsafeWeightsError(
                f"{member}: {folder} has its adapter as adapter_model.bin, a pickle, which is never opened; "
                "save it again with PEFT's save_pretrained, which writes safetensors",
                member=member,
                source=source,
            )
        raise CorruptWeightsError(f"{member}: {folder} has no adapter_model.safetensors", member=member, source=source)
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind, rank = config["peft_type"], config["r"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptWeightsError(
            f"{member}: {folder}/adapter_config.json is not an adapter configuration: {error!r}",
            member=member,
            source=source,
        ) from error
    assert rank is not None
    reasons = [
        reason
        for found, reason in (
            (kind != "LORA", f"it is of type {kind}, not LORA"),
            (config.get("use_dora"), "it uses DoRA"),
            (config.get("modules_to_save"), f"it replaces whole modules ({config.get('modules_to_save')})"),
            (config.get("trainable_token_indices"), "it changes embeddings of single tokens"),
            (
                _touches_embeddings(config.get("target_modules")),
                "it changes the embeddings or the output layer",
            ),
            (config.get("bias", "none") != "none", f"it trains biases (bias={config.get('bias')!r})"),
        )
        if found
    ]
    if reasons:
        raise UnsupportedAdapterError(
            f"{member}: the adapter in {folder} cannot be switched per row: {'; '.join(reasons)}. "
            "Merge it (PEFT's merge_and_unload), save the merged model, and give that folder instead.",
            member=member,
            source=source,
        )
    return dict(config)


def _touches_embeddings(target_modules: Any) -> bool:
    names = target_modules if isinstance(target_modules, list) else []
    return any(name.split(".")[-1] in ("lm_head", "embed_tokens", "wte", "embed_out") for name in names)


def adapter_num_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Bytes of an adapter's weights once held as `dtype`, read from the file's header."""
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118 - not a mapping
    return sum(torch.Size(shape).numel() for shape in shapes) * dtype.itemsize
