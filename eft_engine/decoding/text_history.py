"""Drafts from earlier texts: what was read and written before tends to be written again (agents repeat calls, edits repeat code).

Like `PromptLookupIndex`, over many texts and within a bound: the oldest ones are forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

SIZES = (8, 4)
"""Sizes of the n-grams that are looked up, the longest first."""


class TextHistory:
    """Where each n-gram of many texts ended last.

    >>> history = TextHistory(max_tokens=100)
    >>> history.add([1, 2, 3, 4, 5, 6])
    >>> history.propose([9, 1, 2, 3, 4], 8)
    [5, 6]

    Args:
        max_tokens: most tokens of all texts together.
    """

    def __init__(self, *, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._texts: deque[tuple[int, ...]] = deque()
        self._num_tokens = 0
        self._ends: dict[tuple[int, ...], tuple[tuple[int, ...], int]] = {}  # n-gram -> text, index of what followed

    def add(self, token_ids: Sequence[int]) -> None:
        """Remember a text; of one that is too long its end."""
        text = tuple(token_ids[-self._max_tokens :])
        self._texts.append(text)
        self._num_tokens += len(text)
        for size in SIZES:
            for end in range(size, len(text)):
                self._ends[text[end - size : end]] = (text, end)
        while self._num_tokens > self._max_tokens:
            self._forget(self._texts.popleft())

    def _forget(self, text: tuple[int, ...]) -> None:
        self._num_tokens -= len(text)
        for size in SIZES:
            for end in range(size, len(text)):
                ngram = text[end - size : end]
                if ngram in self._ends and self._ends[ngram][0] is text:
                    del self._ends[ngram]

    def propose(self, token_ids: Sequence[int], max_tokens: int) -> list[int]:
        """What followed where the longest known n-gram that `token_ids` end in was last; at most `max_tokens`."""
        for size in SIZES:
            found = self._ends.get(tuple(token_ids[-size:])) if len(token_ids) >= size else None
            if found is not None:
                text, end = found
                return list(text[end : end + max_tokens])
        return []
