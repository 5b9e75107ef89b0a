"""Memory for weights in the large pages of a processor.

A pass reads all weights once, and with pages of four kilobytes the processor looks up where the next one lies again and again, in a
virtual machine twice. Linux gives pages of two megabytes to whoever asks for them.
"""

from __future__ import annotations

import mmap
import sys

import torch
from torch import Tensor

from eft_engine.models.lazy_memory import mapped_pages

HUGE_BYTES = 2**21
"""Of a large page on x86-64, and on most of ARM; another size costs nothing but their use."""

CHUNK_BYTES = 16 * HUGE_BYTES
"""Weights lie one behind the other in chunks, so that few large pages are filled in part."""

ALIGNMENT = 64
"""Of each weight: a line of the caches."""


class WeightMemory:
    """Zeros for the weights of one network, which share chunks; a chunk is gone with the last of them."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def zeros(self, num_bytes: int) -> Tensor:
        """Bytes that are zero, `[num_bytes]`.

        Raises:
            MemoryError: there is no room even for the addresses.
        """
        if sys.platform != "linux":
            return torch.zeros(num_bytes, dtype=torch.uint8)
        start = -(-self._used // ALIGNMENT) * ALIGNMENT
        if start + num_bytes > len(self._chunk):
            self._chunk, start = _mapped(max(CHUNK_BYTES, num_bytes)), 0
        self._used = start + num_bytes
        return self._chunk[start : self._used]


def _mapped(num_bytes: int) -> Tensor:
    """Zeros that begin with a large page and take memory as they are written."""
    whole = torch.frombuffer(mapped_pages(num_bytes + HUGE_BYTES, mmap.MADV_HUGEPAGE), dtype=torch.uint8)
    first = -whole.data_ptr() % HUGE_BYTES
    return whole[first : first + num_bytes]
