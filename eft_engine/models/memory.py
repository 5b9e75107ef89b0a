"""Recognising that memory ran out, which every allocator says in its own way."""

from __future__ import annotations

import errno

import torch

WORDS = ("DefaultCPUAllocator", "can't allocate memory", "out of memory", "Cannot allocate memory")
"""Of torch's allocator on a CPU, of drivers, and of systems that cannot map a file."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch has a class for accelerators, and a bare `RuntimeError` for other memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in WORDS)
