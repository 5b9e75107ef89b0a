"""Weights as codes of eight or four bits.

Each group of 32 inputs of a column has a scale, and with four bits an offset, both in bfloat16: `weight = scale * code` with codes
from -127 to 127, or `weight = offset + scale * code` with codes from 0 to 15 (the form of llama.cpp's Q8_0 and Q4_1).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 32
"""Inputs that share a scale."""


class Kind(enum.IntEnum):
    """What a packed matrix holds its numbers as."""

    F32 = 0
    BF16 = 1
    INT8 = 2
    INT4 = 3


@dataclass(frozen=True)
class Codes:
    """A weight `[out, in]` rounded: codes `[out, padded in]` (bytes), scales and offsets `[out, groups]` (bfloat16)."""

    numbers: Tensor
    scales: Tensor
    offsets: Tensor


def to_codes(weight: Tensor, kind: Kind) -> Codes:
    """Round a weight `[out, in]` of any float dtype."""
    columns, inputs = weight.shape
    groups = -(-inputs // GROUP)
    padded = torch.zeros(columns, groups * GROUP)
    padded[:, :inputs] = weight
    grouped = padded.view(columns, groups, GROUP)
    if kind is Kind.INT8:
        scales = (grouped.abs().amax(dim=-1) / 127).bfloat16()
        offsets = torch.zeros_like(scales)
        least, most = -127, 127
    else:
        assert kind is Kind.INT4, f"{kind} has no codes"
        offsets = grouped.amin(dim=-1).bfloat16()
        scales = ((grouped.amax(dim=-1) - offsets.float()) / 15).bfloat16()
        least, most = 0, 15
    inverse = torch.where(scales != 0, 1 / scales.float(), 0.0)
    codes = ((grouped - offsets.float()[..., None]) * inverse[..., None]).round().clamp(least, most)
    numbers = codes.to(torch.int8).view(torch.uint8).reshape(columns, groups * GROUP)
    return Codes(numbers.contiguous(), scales.contiguous(), offsets.contiguous())


KINDS: dict[str, Kind] = {"int8": Kind.INT8, "int4": Kind.INT4}
"""By what configurations call them."""


def held_share(quantization: str, dtype: torch.dtype) -> float:
    """Bytes of rounded weights by the bytes of the same weights in `dtype`; scales and offsets count."""
    bits = {"int8": 8 + 16 / GROUP, "int4": 4 + 32 / GROUP}[quantization]
    return bits / (8 * dtype.itemsize)
