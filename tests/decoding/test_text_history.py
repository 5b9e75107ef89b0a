"""The history finds what a search through the remembered texts finds, and forgets the oldest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eft_engine.decoding.text_history import SIZES, TextHistory


def searched(texts: list[list[int]], token_ids: list[int], max_tokens: int) -> list[int]:
    for size in SIZES:
        for text in reversed(texts):
            for end in range(len(text) - 1, size - 1, -1):
                if len(token_ids) >= size and text[end - size : end] == token_ids[-size:]:
                    return text[end : end + max_tokens]
    return []


TEXTS = st.lists(st.lists(st.integers(0, 1), max_size=20), max_size=5)


@given(TEXTS, st.lists(st.integers(0, 1), max_size=12), st.integers(1, 6))
def test_history_equals_a_search(texts: list[list[int]], token_ids: list[int], max_tokens: int) -> None:
    history = TextHistory(max_tokens=1000)
    for text in texts:
        history.add(text)
    assert history.propose(token_ids, max_tokens) == searched(texts, token_ids, max_tokens)


@given(TEXTS, st.integers(1, 40))
def test_no_more_is_held_than_allowed_and_what_is_forgotten_is_gone(texts: list[list[int]], most: int) -> None:
    history = TextHistory(max_tokens=most)
    for text in texts:
        history.add(text)
        assert sum(map(len, history._texts)) == history._num_tokens <= most
    held = {id(text) for text in history._texts}
    assert all(id(text) in held for text, _ in history._ends.values())
