"""The n-gram index finds what a search through the whole list finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eft_engine.decoding.prompt_lookup import PromptLookupIndex


def searched(token_ids: list[int], sizes: range, max_tokens: int) -> list[int]:
    for size in sizes:
        for start in range(len(token_ids) - size - 1, -1, -1):
            if size <= len(token_ids) and token_ids[start : start + size] == token_ids[-size:]:
                found = token_ids[start + size :]
                return [found[offset % len(found)] for offset in range(max_tokens)]
    return []


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 30), st.integers(0, 6))
def test_index_equals_a_search(token_ids: list[int], split: int, max_tokens: int) -> None:
    index = PromptLookupIndex(token_ids[:split], min_ngram_size=1, max_ngram_size=3)
    index.extend(token_ids[split:])
    assert index.propose(max_tokens) == (searched(token_ids, range(3, 0, -1), max_tokens) if max_tokens else [])
