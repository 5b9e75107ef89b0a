"""Zeros take memory as they are written, as the system itself counts it."""

from __future__ import annotations

import sys

import pytest
import torch

from eft_engine.models.lazy_memory import PAGE_BYTES, LazyZeros
from tests.resident import taken_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all of the memory is taken at once")

ROW = PAGE_BYTES // 4
"""Numbers of a page, in float32."""


def make_zeros(num_rows: int) -> LazyZeros:
    """One page a row."""
    return LazyZeros((num_rows, ROW), like=torch.empty(0))


def test_what_is_written_takes_memory_and_what_is_read_takes_none() -> None:
    zeros = make_zeros(1000)
    assert zeros.is_lazy
    assert zeros.tensor.sum() == 0
    before = taken_bytes(zeros)
    zeros.tensor[10:30] = 1.0
    zeros.tensor[500, 7] = 1.0
    assert taken_bytes(zeros) - before == 21 * PAGE_BYTES
    assert zeros.tensor.sum() == 20 * ROW + 1


def test_what_is_given_back_is_zero_and_takes_nothing() -> None:
    zeros = make_zeros(100)
    zeros.tensor[:] = 2.0
    before = taken_bytes(zeros)
    zeros.give_back(zeros.tensor[20:80])
    assert before - taken_bytes(zeros) == 60 * PAGE_BYTES
    assert zeros.tensor[20:80].eq(0).all()
    assert zeros.tensor[:20].eq(2).all()
    assert zeros.tensor[80:].eq(2).all()


def test_pages_that_are_shared_with_other_parts_stay() -> None:
    zeros = make_zeros(4)
    zeros.tensor[:] = 3.0
    zeros.give_back(zeros.tensor.view(-1)[ROW // 2 : 3 * ROW - 1])
    assert zeros.tensor[0].eq(3).all()
    assert zeros.tensor[1].eq(0).all()
    assert zeros.tensor[2:].eq(3).all()
    zeros.give_back(zeros.tensor[3, 1:5])
    assert zeros.tensor[3].eq(3).all()


def test_room_that_no_system_has_is_refused() -> None:
    with pytest.raises(MemoryError, match="no address space for"):
        LazyZeros((1 << 50,), like=torch.empty(0))


def test_nothing_takes_nothing() -> None:
    assert LazyZeros((0, 4), like=torch.empty(0)).tensor.shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_has_the_dtype_of_what_it_is_like(dtype: torch.dtype) -> None:
    assert LazyZeros((2, 3), like=torch.empty(0, dtype=dtype)).tensor.dtype == dtype
