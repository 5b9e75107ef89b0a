"""LoRA adapters on a network, switched per row of a batch.

The rows of one forward pass may belong to different members: some with an adapter, some without. PEFT loads the adapters and
keeps them switched off; hooks behind its layers add `scaling * B(A(x))` (LoRA, arXiv 2106.09685, equation 3) to the rows that have
one. Which rows those are is a tensor on the device, so that a recorded pass can be replayed with other rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eft_engine.errors import CorruptWeightsError, UnsafeWeightsError, UnsupportedAdapterError

AdapterRows = Mapping[str, Tensor]
"""By adapter: which rows of a pass have it, bool `[rows]`."""

INITIAL_VALUES_FROM_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations of PEFT that subtract what they put into A and B from the weights of the layer (PiSSA, arXiv 2404.02948)."""


class AdapterSwitch:
    """Holds the adapters of one network and adds to each row what its adapter says."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._rows: AdapterRows = {}
        self._layers: list[Any] = []
        self._hooks: list[Any] = []
        self.names: list[str] = []

    def add(self, folder: Path, *, member: str) -> str:
        """Load an adapter from `folder` (adapter_config.json and adapter_model.safetensors); returns its name.

        Raises:
            UnsafeWeightsError, CorruptWeightsError, UnsupportedAdapterError: see `check_adapter`.
        """
        from peft.tuners.lora import LoraLayer  # takes a while to import, and most trios have no adapter

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
        self._switch_off_hooks()
        self._layers = [module for module in self._model.modules() if isinstance(module, LoraLayer)]
        for layer in self._layers:
            layer.enable_adapters(False)
            self._hooks.append(layer.register_forward_hook(self._add_changes))
        kinds = {type(layer).__name__ for layer in self._layers if not _is_plain(layer, name)}
        if kinds:
            raise _unsupported(
                folder, member, [f"it adds more to its layers ({', '.join(sorted(kinds))}) than B(A(x))"]
            )
        return name

    def _add_changes(self, layer: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for name, rows in self._rows.items():
            if name in layer.lora_A:
                down, up = layer.lora_A[name], layer.lora_B[name]
                change = up(down(args[0].to(down.weight.dtype))) * layer.scaling[name]
                # Rows without the adapter keep the very bits that they had.
                output = torch.where(rows.to(output.device)[:, None, None], output + change.to(output.dtype), output)
        return output

    def rows_of(self, adapters: Sequence[str | None]) -> AdapterRows:
        """For every adapter of the network which of these rows have it, on the CPU.

        Args:
            adapters: each row's adapter; None: it has none.
        """
        return {name: torch.tensor([own == name for own in adapters]) for name in self.names}

    @contextmanager
    def on(self, rows: AdapterRows) -> Iterator[None]:
        """Forward passes inside the block have these adapters in these rows; elsewhere none has any."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = {}

    @contextmanager
    def only(self, adapter: str | None) -> Iterator[None]:
        """Inside the block PEFT itself adds this adapter to all rows, or none."""
        if adapter is None:
            yield
            return
        for layer in self._layers:
            layer.enable_adapters(True)
            layer.set_adapter(adapter)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(False)

    def _switch_off_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def remove(self) -> None:
        """Take all adapters off the network, and give its layers back as PEFT made them."""
        self._switch_off_hooks()
        for layer in self._layers:
            layer.enable_adapters(True)
        self._layers.clear()
        for name in self.names:
            self._model.delete_adapter(name)
        self.names.clear()


def _is_plain(layer: Any, name: str) -> bool:
    """Whether an adapter, where it touches the layer, adds `scaling * B(A(x))` and nothing else."""
    if name in layer.lora_variant or name in layer.lora_embedding_A:
        return False
    return name not in layer.lora_A or isinstance(layer.lora_A[name], torch.nn.Linear)


def check_adapter(folder: Path, *, member: str) -> dict[str, Any]:
    """The adapter's configuration, if the engine can switch it per row.

    Raises:
        UnsafeWeightsError, CorruptWeightsError: see `read_adapter_config`.
        UnsupportedAdapterError: not a plain LoRA, or it touches embeddings or the output layer.
    """
    config = read_adapter_config(folder, member=member)
    reasons = beyond_lora(config)
    if _touches_embeddings(config.get("target_modules")):
        reasons.append("it changes the embeddings or the output layer")
    if reasons:
        raise _unsupported(folder, member, reasons)
    return config


def read_adapter_config(folder: Path, *, member: str) -> dict[str, Any]:
    """The configuration of an adapter whose weights lie beside it as safetensors; the weights are not opened.

    Raises:
        UnsafeWeightsError: there are only pickled weights.
        CorruptWeightsError: files are missing or unreadable.
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
        _ = config["peft_type"], config["r"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptWeightsError(
            f"{member}: {folder}/adapter_config.json is not an adapter configuration: {error!r}",
            member=member,
            source=source,
        ) from error
    return dict(config)


def beyond_lora(config: Mapping[str, Any]) -> list[str]:
    """What an adapter does beyond adding `scaling * B(A(x))` to layers, by its configuration; no runtime can hold that."""
    kind, initial = config["peft_type"], str(config.get("init_lora_weights", True)).lower()
    return [
        reason
        for found, reason in (
            (kind != "LORA", f"it is of type {kind}, not LORA"),
            (config.get("use_dora"), "it uses DoRA"),
            (config.get("modules_to_save"), f"it replaces whole modules ({config.get('modules_to_save')})"),
            (config.get("trainable_token_indices"), "it changes embeddings of single tokens"),
            (
                config.get("target_parameters"),
                f"it changes parameters outside of layers ({config.get('target_parameters')})",
            ),
            (config.get("bias", "none") != "none", f"it trains biases (bias={config.get('bias')!r})"),
            (config.get("layer_replication"), "it repeats layers of the model"),
            (
                initial.startswith(INITIAL_VALUES_FROM_THE_MODEL),
                f"it starts from values taken out of the model's own weights (init_lora_weights={initial!r}), which would "
                "change for the other members too; save it with PEFT's path_initial_model_for_weight_conversion",
            ),
        )
        if found
    ]


def _unsupported(folder: Path, member: str, reasons: Sequence[str]) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(
        f"{member}: the adapter in {folder} cannot be switched per row: {'; '.join(reasons)}. "
        "Merge it (PEFT's merge_and_unload), save the merged model, and give that folder instead.",
        member=member,
        source=str(folder),
    )


def _touches_embeddings(target_modules: Any) -> bool:
    names = target_modules if isinstance(target_modules, list) else []
    return any(name.split(".")[-1] in ("lm_head", "embed_tokens", "wte", "embed_out") for name in names)


def adapter_num_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Bytes of an adapter's weights once held as `dtype`, read from the file's header."""
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118 - not a mapping
    return sum(torch.Size(shape).numel() for shape in shapes) * dtype.itemsize
