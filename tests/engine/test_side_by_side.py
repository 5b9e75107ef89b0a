"""Which networks with threads of their own run at the same time, and with how many threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from eft_engine.engine.side_by_side import threads_side_by_side


@dataclass(frozen=True)
class Toy:
    """As much of a network as is looked at."""

    name: str
    weight_bytes: int
    num_threads: int


def threads(sizes: list[int], *, num_threads: int, tokens: list[int] | None = None) -> list[int] | None:
    networks: list[Any] = [Toy(str(index), size, num_threads) for index, size in enumerate(sizes)]
    found = threads_side_by_side(dict(zip(networks, tokens or [1] * len(sizes), strict=True)))
    return None if found is None else [found[network] for network in networks]


@pytest.mark.parametrize(
    ("sizes", "num_threads", "expected"),
    [
        pytest.param([11, 5, 5], 2, [1, 1, 1], id="a thread each, two cores"),
        pytest.param([11, 5, 5], 4, [2, 1, 1], id="by weight"),
        pytest.param([11, 5, 5], 8, [4, 2, 2], id="none is left over"),
        pytest.param([40, 5, 5], 2, None, id="a large base would be waited for"),
        pytest.param([40, 5, 5], 8, [6, 1, 1], id="not where it gets enough"),
        pytest.param([11, 5, 5], 1, None, id="one thread has nothing to share"),
        pytest.param([11], 4, None, id="one network has all"),
        pytest.param([0, 1, 1], 0, None, id="torch's networks have none of their own"),
    ],
)
def test_threads_are_shared_by_weight(sizes: list[int], num_threads: int, expected: list[int] | None) -> None:
    assert threads(sizes, num_threads=num_threads) == expected


def test_passes_of_more_tokens_run_one_after_another() -> None:
    assert threads([11, 5, 5], num_threads=2, tokens=[1, 1, 2]) is None
