"""Zeros that take memory as they are written: the system hands out a page at the first write, and takes it back when told."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

PAGE_BYTES = mmap.PAGESIZE


class LazyZeros:
    """A tensor of zeros in memory of its own.

    On Linux and a CPU nothing is taken for what was never written, and reading that takes nothing either. Elsewhere it is an
    ordinary tensor, which has all of its memory from the start.

    Args:
        shape: of `tensor`.
        like: what has its dtype and device.

    Raises:
        MemoryError: there is no room even for the addresses.
    """

    def __init__(self, shape: Sequence[int], *, like: Tensor) -> None:
        self._pages: mmap.mmap | None = None
        num_bytes = math.prod(shape) * like.element_size()
        if num_bytes == 0 or not is_lazy(like.device):
            self.tensor = like.new_zeros(tuple(shape))
            return
        self._pages = mapped_pages(
            num_bytes, mmap.MADV_NOHUGEPAGE
        )  # in a huge one a written position would take two megabytes
        self.tensor = torch.frombuffer(self._pages, dtype=like.dtype).view(tuple(shape))

    @property
    def is_lazy(self) -> bool:
        """Whether it takes memory only for what was written."""
        return self._pages is not None

    def give_back(self, part: Tensor) -> None:
        """Let go of the pages that lie inside a contiguous part of the tensor, which are zeros again; what shares a page with other
        parts keeps its values.
        """
        if self._pages is None:
            return
        first = part.data_ptr() - self.tensor.data_ptr()
        start = -(-first // PAGE_BYTES) * PAGE_BYTES
        stop = (first + part.nbytes) // PAGE_BYTES * PAGE_BYTES
        if stop > start:
            self._pages.madvise(mmap.MADV_DONTNEED, start, stop - start)


def mapped_pages(num_bytes: int, advice: int) -> mmap.mmap:
    """Zeros of this process alone that take memory as they are written (Linux).

    Args:
        num_bytes: how many.
        advice: `mmap.MADV_HUGEPAGE` or `mmap.MADV_NOHUGEPAGE`.

    Raises:
        MemoryError: there is no room even for the addresses.
    """
    try:
        pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no address space for {num_bytes:,} bytes ({error})") from error
    with suppress(OSError):  # a system without huge pages does not know the word
        pages.madvise(advice)
    return pages


def is_lazy(device: torch.device) -> bool:
    """Whether memory on this device can be taken page by page."""
    return device.type == "cpu" and sys.platform == "linux"


def rounded_to_pages(num_bytes: int) -> int:
    """What so many bytes take that begin with a page.

    >>> [rounded_to_pages(number) // PAGE_BYTES for number in (0, 1, PAGE_BYTES, PAGE_BYTES + 1)]
    [0, 1, 1, 2]
    """
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES
