"""Linear layers on a CPU, with their weights in the order in which oneDNN reads them.

`torch.nn.functional.linear` hands float32 to the BLAS, which on some processors takes two to six times as long as oneDNN, and
bfloat16 to oneDNN, which then reads a matrix in an order that it was not made for. Packed once, as torch's own compiler does with
models that it freezes, both are as fast as memory and processor allow, for one row and for a thousand. Whether it is faster here is
measured once per process and dtype; the result differs from `nn.Linear` by rounding only.
"""

from __future__ import annotations

import functools
import inspect
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

MIN_WEIGHT_SIZE = 2**16
"""Smaller matrices are not worth a change."""

_PACKED_FOR_ROWS = 16
"""oneDNN chooses the order by a number of rows; this one serves prompts and single tokens alike."""

_OPERATORS = ("_reorder_linear_weight", "_linear_pointwise")
"""Of `torch.ops.mkldnn`; torch's compiler uses them, but they are not public, so a torch without them is served as it is."""

_MULTIPLICATIONS = re.compile(r"self\.(\w+)\.weight\s*@|(?:@\s*|linear\([^()]*)self\.(\w+)\.weight")
"""A weight of a layer in a product that is written out."""

_MEASURED_ROWS = (1, 2, 8, 64)
_MEASURED_SHAPE = (16384, 1024)  # larger than caches, as the weights of a model are together
_REPETITIONS = 3


class PackedLinear(nn.Linear):
    """A linear layer that multiplies with a packed copy of its weight."""

    packed: Tensor
    holds_weight: bool
    """Whether `weight` has its values; else the packed copy alone has them, and `weight` is NaN."""

    def forward(self, input: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        return packed_linear(input, self.packed, self.bias)


class PackedLayers:
    """A model's linear layers, packed while it is held; see `pack_linear`."""

    def __init__(self, model: nn.Module, *, keep_weights: bool) -> None:
        self._model, self._keep_weights = model, keep_weights

    def take(self) -> None:
        """Pack them."""
        pack_linear(self._model, keep_weights=self._keep_weights)

    @contextmanager
    def own_layers(self) -> Iterator[None]:
        """Inside the block the model has the layers that it came with, and may get others."""
        self.give_back()
        try:
            yield
        finally:
            self.take()

    def give_back(self) -> None:
        """Undo that."""
        restore_linear(self._model)


def pack_linear(model: nn.Module, *, keep_weights: bool) -> None:
    """Pack the weights of `model`'s linear layers that are on a CPU, where that makes them faster.

    Args:
        model: changed in place, until `restore_linear`.
        keep_weights: hold packed weights beside the others, for a model that somebody else may look at; otherwise in their stead,
            but for those that another layer uses too (an output layer that is tied to the embedding), and those that the code
            around a layer multiplies with itself.
    """
    around = {
        id(child)
        for module in model.modules()
        for name, child in module.named_children()
        if name in _multiplied_around(module)
    }
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    for module in model.modules():
        if _is_eligible(module) and packed_is_faster(module.weight.dtype):
            object.__setattr__(module, "__class__", PackedLinear)
            layer = cast(PackedLinear, module)
            layer.packed = pack(layer.weight)
            layer.holds_weight = keep_weights or uses[id(layer.weight)] > 1 or id(layer) in around
            if not layer.holds_weight:
                # One number in the shape of all: dtype, shape and device stay, and a use that was overlooked shows.
                layer.weight.data = layer.weight.detach().new_full((), torch.nan).expand_as(layer.weight)


def restore_linear(model: nn.Module) -> None:
    """Undo `pack_linear`, to the bit."""
    for module in model.modules():
        if type(module) is PackedLinear:
            if not module.holds_weight:
                module.weight.data = module.packed.to_dense()
            del module.packed, module.holds_weight
            object.__setattr__(module, "__class__", nn.Linear)


def pack(weight: Tensor) -> Tensor:
    """A weight `[out, in]` in oneDNN's order."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PACKED_FOR_ROWS)
    return packed


def packed_linear(rows: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """`rows @ weight.T + bias` with a packed weight: `[..., in]` to `[..., out]`."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return product


def _multiplied_around(module: nn.Module) -> frozenset[str]:
    """Children of a module whose weights its own code multiplies with (Mamba's step projection), and not through them."""
    return _multiplied_in(type(module).forward)


@functools.cache
def _multiplied_in(forward: Callable[..., object]) -> frozenset[str]:
    try:
        code = inspect.getsource(forward)
    except (OSError, TypeError):  # made at run time
        return frozenset()
    return frozenset(name for pair in _MULTIPLICATIONS.findall(code) for name in pair if name)


def _is_eligible(module: nn.Module) -> bool:
    if type(module) is not nn.Linear:  # subclasses, quantised ones for instance, know better
        return False
    if "forward" in vars(module):  # replaced already: a shard of a tensor-parallel layer
        return False
    weight = module.weight
    return (
        type(weight) is nn.Parameter  # others are tensors that pack themselves, as torchao's
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.numel() >= MIN_WEIGHT_SIZE
    )


@functools.cache
@torch.inference_mode()
def packed_is_faster(dtype: torch.dtype) -> bool:
    """Whether packed products of this dtype are faster here, over a few row counts together. Measured once."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS):
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    weight = torch.ones(_MEASURED_SHAPE, dtype=dtype)  # random numbers would take longer than the measurement
    packed = pack(weight)
    plain_s = packed_s = 0.0
    for num_rows in _MEASURED_ROWS:
        rows = torch.ones(num_rows, _MEASURED_SHAPE[1], dtype=dtype)
        plain_s += min(_seconds(functional.linear, rows, weight) for _ in range(_REPETITIONS))
        packed_s += min(_seconds(packed_linear, rows, packed) for _ in range(_REPETITIONS))
    return packed_s < plain_s


def _seconds(product: Callable[[Tensor, Tensor], Tensor], rows: Tensor, weight: Tensor) -> float:
    started = time.perf_counter()
    product(rows, weight)
    return time.perf_counter() - started
