"""Workers of a waiting thread end, and torch goes on as before."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from eft_engine.engine import openmp
from eft_engine.engine.openmp import release_workers

ON_GNU_OPENMP = openmp._openmp_function("omp_pause_resource_all") is not None and Path("/proc/self/task").is_dir()


def num_threads() -> int:
    """Threads of this process, OpenMP's included."""
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not ON_GNU_OPENMP, reason="torch runs on another OpenMP, or threads cannot be counted here")
def test_release_ends_the_workers_of_the_calling_thread() -> None:
    counts = []

    def work() -> None:
        release_workers()
        counts.append(num_threads())
        torch.set_num_threads(3)
        torch.randn(1 << 20).exp()
        counts.append(num_threads())
        release_workers()
        counts.append(num_threads())

    before = torch.get_num_threads()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    assert counts[1] == counts[0] + 2
    assert counts[2] == counts[0]


def test_torch_computes_the_same_after_release() -> None:
    values = torch.randn(1 << 18)
    expected = values.exp().sum()
    for _ in range(3):
        release_workers()
        assert values.exp().sum() == expected


def test_runtime_without_the_function_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.__config__, "parallel_info", lambda: "native thread pool")
    openmp._openmp_function.cache_clear()
    try:
        assert openmp._openmp_function("omp_pause_resource_all") is None
        release_workers()
    finally:
        openmp._openmp_function.cache_clear()


def test_a_limit_of_threads_holds_inside_and_in_threads_begun_there() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    def compute() -> None:
        torch.ones(4, 4).sum()
        seen.append(torch.get_num_threads())

    with openmp.num_threads(before + 2):
        assert torch.get_num_threads() == before + 2
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join()
    assert seen == [before + 2]
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), openmp.num_threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before
