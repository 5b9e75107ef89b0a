"""Memory of weights: zeros of their own, in few chunks, given back with the last of them."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from eft_engine.models.native.huge_pages import ALIGNMENT, CHUNK_BYTES, HUGE_BYTES, WeightMemory

pytestmark = pytest.mark.only_torch


def test_weights_are_zeros_of_their_own() -> None:
    memory = WeightMemory()
    sizes = [1, 63, 64, 5000, CHUNK_BYTES - 10, 7, CHUNK_BYTES + 1, 3]
    weights = [memory.zeros(size) for size in sizes]
    assert [len(own) for own in weights] == sizes
    assert not any(own.any() for own in weights)
    for index, own in enumerate(weights):
        own.fill_(index + 1)
    assert [own.unique().tolist() for own in weights] == [[index + 1] for index in range(len(sizes))]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the memory is torch's")
def test_they_begin_with_lines_and_large_pages_and_share_chunks() -> None:
    memory = WeightMemory()
    first, second, large = memory.zeros(10), memory.zeros(20), memory.zeros(2 * CHUNK_BYTES)
    assert second.data_ptr() - first.data_ptr() == ALIGNMENT
    assert [own.data_ptr() % HUGE_BYTES for own in (first, large)] == [0, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the memory is torch's")
def test_a_chunk_is_gone_with_its_last_weight() -> None:
    memory = WeightMemory()
    first, second = memory.zeros(10), memory.zeros(20)
    storage = first.untyped_storage()._cdata
    assert second.untyped_storage()._cdata == storage
    address = first.data_ptr()

    def is_mapped() -> bool:
        lines = Path("/proc/self/maps").read_text(encoding="ascii").splitlines()
        spans = [tuple(int(part, 16) for part in line.split()[0].split("-")) for line in lines]
        return any(start <= address < stop for start, stop in spans)

    del first
    assert is_mapped()
    del second, memory
    gc.collect()
    assert not is_mapped()


def test_no_room_for_addresses_is_a_lack_of_memory() -> None:
    with pytest.raises((MemoryError, RuntimeError)):
        WeightMemory().zeros(2**62)
