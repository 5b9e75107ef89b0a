"""Other families, each in its own start: sliding windows, and vocabularies that are padded differently, over two processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.vllm.asking import token_ids
from tests.vllm.trios import Judge, mixed_requests, save_trio


def test_gemma3_trio_with_sliding_windows_is_exact(
    start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    trio = save_trio("gemma3", tmp_path_factory.mktemp("gemma3"))
    judge, requests = Judge(trio), mixed_requests(20, num_pairs=1)
    llm = start(trio.base, trio.overrides)
    expected = [judge.greedy(own) for own in requests]
    assert token_ids(llm, requests) == expected
    assert token_ids(llm, requests) == expected


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_tensor_parallel_trio_is_exact(
    family: str, start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two processes over gloo; Llama composes parts of the vocabulary, Qwen 2 whole rows (its vocabularies differ in size)."""
    trio = save_trio(family, tmp_path_factory.mktemp(family))
    judge, requests = Judge(trio), mixed_requests(20, num_pairs=1, max_tokens=12)
    llm = start(trio.base, trio.overrides, tensor_parallel_size=2)
    assert token_ids(llm, requests) == [judge.greedy(own) for own in requests]
