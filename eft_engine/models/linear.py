"""Linear layers for few rows on a CPU.

Decoding multiplies a handful of rows with every weight matrix. In float32 `torch.nn.functional.linear` hands that product to BLAS
as `[out, in] x [in, rows]` in column-major order, which on some processors is several times slower than the same product with
the two operands exchanged. Which way is faster is measured once per process.
"""

from __future__ import annotations

import functools
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_ROWS = 16
"""Beyond this many rows torch's own way is as fast or faster, except for very wide outputs."""

WIDE = 8192
"""A matrix with at least this many outputs, in practice an output layer, is multiplied in parts: BLAS prepares a whole operand
at a time, and one that is larger than a cache is read from memory again."""

FEW_ROWS_WIDE = 8
"""Up to this many rows the product takes as long as reading the matrix, in parts or not."""

MAX_ROWS_WIDE = 64
PART = 2048

MIN_WEIGHT_SIZE = 2**16
"""Smaller matrices are not worth a change."""

_MEASURED_ROWS = (1, 2, 4, 8)
_MEASURED_SHAPE = (16384, 1024)  # larger than caches, as the weights of a model are together
_REPETITIONS = 3


class FewRowsLinear(nn.Linear):
    """A linear layer that takes the exchanged product for up to `MAX_ROWS` rows, and a wide one for up to `MAX_ROWS_WIDE`.

    Differs from `nn.Linear` by rounding only.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        rows = input.reshape(-1, input.shape[-1])
        wide = self.out_features >= WIDE
        if len(rows) > (MAX_ROWS_WIDE if wide else MAX_ROWS):
            return super().forward(input)
        product = wide_linear if wide and len(rows) > FEW_ROWS_WIDE else few_rows_linear
        return product(rows, self.weight, self.bias).reshape(*input.shape[:-1], self.out_features)


def few_rows_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`rows @ weight.T + bias` with the operands of the product exchanged; `[rows, in]` to `[rows, out]`, contiguous.

    Some row counts are computed as the next larger one for which BLAS has a good kernel.
    """
    num_rows = len(rows)
    padding = _padded_rows(num_rows) - num_rows
    rows = functional.pad(rows, (0, 0, 0, padding)) if padding else rows.contiguous()
    out = torch.mm(weight, rows.T).T[:num_rows].contiguous()
    return out if bias is None else out + bias


def wide_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`few_rows_linear` for a matrix with very many outputs, `PART` of them at a time."""
    out = rows.new_empty(len(rows), len(weight))
    for start in range(0, len(weight), PART):
        part = slice(start, start + PART)
        out[:, part] = few_rows_linear(rows, weight[part], None if bias is None else bias[part])
    return out


def _padded_rows(num_rows: int) -> int:
    """One row alone is a slow matrix-vector product, 7 rows are slower than 8, 9 to 15 slower than 16."""
    if num_rows == 1:
        return 2
    if num_rows == 7:
        return 8
    return 16 if 9 <= num_rows <= 15 else num_rows


def use_few_rows_linear(model: nn.Module) -> None:
    """Let the float32 linear layers of `model` that are on a CPU take the faster way, if there is one on this processor."""
    for module in model.modules():
        if _is_eligible(module) and exchanged_is_faster():
            object.__setattr__(module, "__class__", FewRowsLinear)


def restore_linear(model: nn.Module) -> None:
    """Undo `use_few_rows_linear`."""
    for module in model.modules():
        if type(module) is FewRowsLinear:
            object.__setattr__(module, "__class__", nn.Linear)


def _is_eligible(module: nn.Module) -> bool:
    if type(module) is not nn.Linear:  # subclasses, quantised ones for instance, know better
        return False
    if "forward" in vars(module):  # replaced already: a shard of a tensor-parallel layer
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= MIN_WEIGHT_SIZE


@functools.cache
@torch.inference_mode()
def exchanged_is_faster() -> bool:
    """Whether the exchanged product is faster here, over a few row counts together. Measured once."""
    weight = torch.ones(_MEASURED_SHAPE)  # random numbers would take longer than the measurement
    seconds = {True: 0.0, False: 0.0}
    for num_rows in _MEASURED_ROWS:
        rows = torch.ones(num_rows, _MEASURED_SHAPE[1])
        for exchanged in (True, False):
            seconds[exchanged] += min(_seconds(rows, weight, exchanged=exchanged) for _ in range(_REPETITIONS))
    return seconds[True] < seconds[False]


def _seconds(rows: Tensor, weight: Tensor, *, exchanged: bool) -> float:
    started = time.perf_counter()
    if exchanged:
        few_rows_linear(rows, weight, None)
    else:
        functional.linear(rows, weight)
    return time.perf_counter() - started
