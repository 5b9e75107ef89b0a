"""A model's weights while the kernels have them: packed, and unpacked one at a time where the model itself computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eft_engine.models.native.decoder import Packed, PackedDecoder
from eft_engine.models.native.quantising import Kind


class KernelWeights:
    """Packs a model's weights. Between `take` and `give_back` the model's own forward pass computes with what was packed.

    Args:
        model: its linear layers' weights are let go as they are packed, unless `keep_weights`.
        codes: see `PackedDecoder`.
        keep_weights: somebody else may look at the model.

    Raises:
        NotForKernelsError: the kernels cannot compute it; it is as it was.
    """

    def __init__(self, model: PreTrainedModel, *, codes: Kind | None, keep_weights: bool) -> None:
        self._unpacks = codes is not None or not keep_weights
        self._let_go = not keep_weights
        self._hooks: list[Any] = []
        self.decoder = PackedDecoder(model, codes=codes, drop=None if keep_weights else _let_go)

    def take(self) -> None:
        """From now on the model computes with packed weights."""
        if self._unpacks:
            for module, packed in self.decoder.weights.items():
                unpacking = _Unpacking(packed)
                self._hooks.append(module.register_forward_pre_hook(unpacking.begin))
                self._hooks.append(module.register_forward_hook(unpacking.end, always_call=True))

    @contextmanager
    def own_layers(self) -> Iterator[None]:
        """Nothing to do: shapes and dtypes are those of the model's own layers, and a plain LoRA looks at no more."""
        yield

    def give_back(self) -> None:
        """The model has its own weights again: those that were let go are unpacked, to the bit where they are no codes."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._let_go:
            for module, packed in self.decoder.weights.items():
                weight: Any = module.weight
                if weight.data.stride() == (0, 0):  # a tied one comes twice
                    weight.data = packed.unpack(weight.dtype)
            self._let_go = False


class _Unpacking:
    """Lets a layer have its weight while it computes."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed
        self._held: Tensor | None = None

    def begin(self, module: Any, args: Any) -> None:
        self._held = module.weight.data
        module.weight.data = self._packed.unpack(module.weight.dtype)

    def end(self, module: Any, args: Any, output: Any) -> None:
        if self._held is not None:
            module.weight.data, self._held = self._held, None


def _let_go(module: nn.Module) -> None:
    """One number in the shape of all: dtype, shape and device stay, and a use that was overlooked shows."""
    weight: Any = module.weight
    weight.data = weight.detach().new_full((), torch.nan).expand_as(weight)
