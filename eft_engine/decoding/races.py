"""Random numbers of a draw: every token has an exponential time by (seed, position, token), and the race decides.

Times come from a counter-based generator (Philox 4x64-10, Salmon et al. 2011), so they depend on nothing that happened before and
can be made anywhere: on a CPU by numpy, on an accelerator by the same arithmetic in torch, with the same bits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from eft_engine.decoding.fusion import fused
from eft_engine.transfer import upload

SALT_TARGET = 0
"""Separates the draws from the composed distribution from any other use of a request's seed."""

SALT_REDRAWN = 1
"""For a text that is drawn anew, so that it does not depend on what the first one showed."""

CPU = torch.device("cpu")
NUM_ROUNDS = 10
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
LOW = 0xFFFFFFFF


def race_times(seed: int, position: int, width: int, *, salt: int = SALT_TARGET, device: torch.device = CPU) -> Tensor:
    """Exponential times with mean 1, `[width]` float32; each depends on seed, position, salt and its own index alone.

    >>> race_times(7, 0, 3), race_times(7, 0, 2)
    (tensor([0.4099, 0.9887, 0.7502]), tensor([0.4099, 0.9887]))
    """
    if device.type != "cpu":
        return times_of_counter(upload([_signed(seed), position, salt], device), width)
    generator = np.random.Philox(key=seed, counter=[0, 0, position, salt])
    bits = generator.random_raw((width + 1) // 2).astype("<u8", copy=False).view("<i4")[:width]
    return _as_times(torch.from_numpy(bits))


def _as_times(bits: Tensor) -> Tensor:
    # Signed, as torch has no arithmetic for unsigned integers; the half keeps the uniform number off 0 and 1.
    return ((bits.to(torch.float64) + (2.0**31 + 0.5)) * 2.0**-32).log().neg().to(torch.float32)


@fused
def times_of_counter(words: Tensor, width: int) -> Tensor:
    """`race_times` in torch's arithmetic: `words` are seed, position and salt, `[3]` int64 on the device that the times are for."""
    seed, position, salt = words.unbind()
    # numpy counts up before it makes its first block of four 64-bit words, which are eight times.
    block = torch.arange(1, -(-width // 8) + 1, device=words.device)
    counter = [block, torch.zeros_like(block), position.expand_as(block), salt.expand_as(block)]
    key = [seed, torch.zeros_like(seed)]
    for _ in range(NUM_ROUNDS):
        high_0, low_0 = _product(MULTIPLIERS[0], counter[0])
        high_1, low_1 = _product(MULTIPLIERS[1], counter[2])
        counter = [high_1 ^ counter[1] ^ key[0], low_1, high_0 ^ counter[3] ^ key[1], low_0]
        key = [part + _signed(step) for part, step in zip(key, KEY_STEPS, strict=True)]
    halves = [half for word in counter for half in (word & LOW, (word >> 32) & LOW)]
    bits = torch.stack(halves, dim=-1).flatten()[:width]  # unsigned 32-bit numbers, in numpy's order
    return _as_times(torch.where(bits > 0x7FFFFFFF, bits - 2**32, bits))


def _product(constant: int, value: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower 64 bits of an unsigned product, in signed arithmetic that wraps around."""
    a_high, a_low = constant >> 32, constant & LOW
    b_high, b_low = (value >> 32) & LOW, value & LOW
    low_low, low_high, high_low = a_low * b_low, a_low * b_high, a_high * b_low
    middle = ((low_low >> 32) & LOW) + (low_high & LOW) + (high_low & LOW)
    high = a_high * b_high + ((low_high >> 32) & LOW) + ((high_low >> 32) & LOW) + ((middle >> 32) & LOW)
    return high, value * _signed(constant)


def _signed(word: int) -> int:
    """The signed integer with the same 64 bits."""
    return word - 2**64 if word >= 2**63 else word
