"""What lies in a PEFT adapter's folder: its configuration, and the names, shapes and values of its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eft_engine.errors import CorruptWeightsError, UnsafeWeightsError

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter whose header was read; its values are read when they are asked for."""

    path: Path
    config: Mapping[str, Any]
    """What adapter_config.json says; it has a `peft_type`."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By key of the file, in its order."""

    @property
    def kind(self) -> str:
        """Of PEFT's types: LORA, IA3, ..."""
        return str(self.config["peft_type"])

    @property
    def trained_on(self) -> str | None:
        """The model that the configuration names; nobody checks whether it is the one at hand."""
        return self.config.get("base_model_name_or_path") or None

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the weights once held as `dtype`."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values()) * dtype.itemsize

    def skeleton(self) -> dict[str, Tensor]:
        """The weights without numbers, on the meta device."""
        return {key: torch.empty(shape, device="meta") for key, shape in self.shapes.items()}

    def tensors(self, *, member: str) -> dict[str, Tensor]:
        """The weights, on the CPU, as the file has them.

        Raises:
            CorruptWeightsError: the file is damaged, or values are not finite.
        """
        try:
            with safe_open(self.path / WEIGHTS, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in self.shapes}
        except (OSError, SafetensorError) as error:
            raise _unreadable(self.path, member, error) from error
        wrong = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
        if wrong:
            raise CorruptWeightsError(
                f"{member}: the adapter in {self.path} has values that are not finite numbers ({', '.join(wrong[:3])}); "
                "its training may have diverged, or the file is damaged",
                member=member,
                source=str(self.path),
            )
        return tensors


def read_adapter(path: Path, *, member: str) -> AdapterFolder:
    """Read the configuration of an adapter and the header of its weights.

    Raises:
        UnsafeWeightsError: there are only pickled weights.
        CorruptWeightsError: files are missing or unreadable, or the file of weights is empty.
    """
    config = read_adapter_config(path, member=member)
    try:
        with safe_open(path / WEIGHTS, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, member, error) from error
    if not shapes:
        raise CorruptWeightsError(
            f"{member}: {path}/{WEIGHTS} holds no weights at all; save the adapter again",
            member=member,
            source=str(path),
        )
    return AdapterFolder(path, config, shapes)


def read_adapter_config(path: Path, *, member: str) -> dict[str, Any]:
    """The configuration of an adapter whose weights lie beside it as safetensors; the weights are not opened.

    Raises:
        UnsafeWeightsError: there are only pickled weights.
        CorruptWeightsError: files are missing or unreadable.
    """
    source = str(path)
    if not (path / WEIGHTS).exists():
        if (path / PICKLE).exists():
            raise UnsafeWeightsError(
                f"{member}: {path} has its adapter as {PICKLE}, a pickle, which is never opened; "
                "save it again with PEFT's save_pretrained, which writes safetensors",
                member=member,
                source=source,
            )
        others = sorted(file.name for file in path.glob("*.safetensors"))
        instead = f"; it has {', '.join(others[:3])}, and PEFT reads one file of that name" if others else ""
        raise CorruptWeightsError(f"{member}: {path} has no {WEIGHTS}{instead}", member=member, source=source)
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        _ = config["peft_type"].upper()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptWeightsError(
            f"{member}: {path}/{CONFIG} is not an adapter configuration: {error!r}", member=member, source=source
        ) from error
    return dict(config)


def _unreadable(path: Path, member: str, error: Exception) -> CorruptWeightsError:
    return CorruptWeightsError(
        f"{member}: {path}/{WEIGHTS} cannot be read ({error}); download it again", member=member, source=str(path)
    )
