"""LoRA adapters on a network, switched per row of a batch.

The rows of one forward pass may belong to different members: some with an adapter, some without. PEFT loads the adapters and
keeps them switched off; hooks behind its layers add `scaling * B(A(x))` (LoRA, arXiv 2106.09685, equation 3) to the rows that have
one. Which rows those are is a tensor on the device, so that a recorded pass can be replayed with other rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eft_engine.errors import CorruptWeightsError, UnsupportedAdapterError
from eft_engine.models.adapter_errors import does_not_fit
from eft_engine.models.adapter_fit import is_plain
from eft_engine.models.adapter_folder import AdapterFolder, read_adapter, read_adapter_config
from eft_engine.models.adapter_kinds import beyond_lora, why_never
from eft_engine.models.adapter_layers import as_named_here, peft_config, put_weights, quietly

if TYPE_CHECKING:
    from peft import PeftModel

AdapterRows = Mapping[str, Tensor]
"""By adapter: which rows of a pass have it, bool `[rows]`."""


class AdapterSwitch:
    """Holds the adapters of one network and adds to each row what its adapter says."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._wrapped: PeftModel | None = None
        self._rows: AdapterRows = {}
        self._layers: list[Any] = []
        self._hooks: list[Any] = []
        self.names: list[str] = []

    def add(self, folder: Path, *, member: str) -> str:
        """Load an adapter from `folder` (adapter_config.json and adapter_model.safetensors); returns its name.

        Raises:
            UnsafeWeightsError, CorruptWeightsError, UnsupportedAdapterError: see `check_adapter`; or it is not for this network.
        """
        from peft.tuners.lora import LoraLayer  # takes a while to import, and most trios have no adapter

        check_adapter(folder, member=member)
        adapter = read_adapter(folder, member=member)
        name = f"adapter_{len(self.names)}"
        self._load(adapter, name, member=member)
        self.names.append(name)
        self._model.eval()
        self._switch_off_hooks()
        self._layers = [module for module in self._model.modules() if isinstance(module, LoraLayer)]
        for layer in self._layers:
            layer.enable_adapters(False)
            self._hooks.append(layer.register_forward_hook(self._add_changes))
        kinds = {type(layer).__name__ for layer in self._layers if not is_plain(layer, name)}
        if kinds:
            raise _not_per_row(
                folder, member, [f"it adds more to its layers ({', '.join(sorted(kinds))}) than B(A(x))"]
            )
        return name

    def _load(self, adapter: AdapterFolder, name: str, *, member: str) -> None:
        from peft import PeftModel

        adapter, tensors = as_named_here(self._model, adapter, adapter.tensors(member=member))
        config = peft_config(adapter, member=member)
        try:
            with quietly():
                if self._wrapped is None:
                    self._wrapped = PeftModel(self._model, config, name, autocast_adapter_dtype=False)
                else:
                    self._wrapped.add_adapter(name, config, autocast_adapter_dtype=False)
                put_weights(self._wrapped, adapter, tensors, name=name, member=member)
        except CorruptWeightsError:
            raise
        except Exception as error:  # whatever PEFT finds wrong with these files means the same to the user
            raise does_not_fit(adapter, member, type(self._model).__name__, [str(error)]) from error

    def _add_changes(self, layer: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for name, rows in self._rows.items():
            if name in layer.lora_A:
                down, up = layer.lora_A[name], layer.lora_B[name]
                change = up(down(args[0].to(down.weight.dtype))) * layer.scaling[name]
                # Rows without the adapter keep the very bits that they had.
                output = torch.where(_spread(rows, output), output + change.to(output.dtype), output)
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
        """Take all adapters off the network, which gets the layers back that it had before."""
        self._switch_off_hooks()
        self._layers.clear()
        self.names.clear()
        if self._wrapped is not None:
            self._wrapped.unload()
            self._wrapped = None


def _spread(rows: Tensor, output: Tensor) -> Tensor:
    """Which vectors of a layer's output belong to these rows, to be broadcast over it.

    Most layers see `[rows, columns, hidden]`; some see all tokens in one list, `[rows * columns, hidden]`, row after row.

    >>> _spread(torch.tensor([True, False]), torch.zeros(4, 3)).flatten().tolist()
    [True, True, False, False]
    """
    columns = output.shape[:-1].numel() // len(rows)
    return rows.to(output.device)[:, None].expand(-1, columns).reshape(*output.shape[:-1], 1)


def check_adapter(folder: Path, *, member: str) -> dict[str, Any]:
    """The adapter's configuration, if it says nothing against switching it per row.

    Raises:
        UnsafeWeightsError, CorruptWeightsError: see `read_adapter_config`.
        UnsupportedAdapterError: not a plain LoRA, or it touches embeddings or the output layer.
    """
    config = read_adapter_config(folder, member=member)
    never = why_never(config)
    reasons = [never] if never else beyond_lora(config)
    if _touches_embeddings(config.get("target_modules")):
        reasons.append("it changes the embeddings or the output layer")
    if reasons:
        raise _not_per_row(folder, member, reasons)
    return config


def _not_per_row(folder: Path, member: str, reasons: Sequence[str]) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(
        f"{member}: the adapter in {folder} cannot be switched per row: {'; '.join(reasons)}. "
        "Let it have a network of its own (MemberConfig(merge=True), or leave merge out).",
        member=member,
        source=str(folder),
    )


def _touches_embeddings(target_modules: Any) -> bool:
    names = target_modules if isinstance(target_modules, list) else []
    return any(name.split(".")[-1] in ("lm_head", "embed_tokens", "wte", "embed_out") for name in names)
