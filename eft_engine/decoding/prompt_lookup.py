"""Drafts without a model: text that was seen before tends to go on as it did (prompt lookup, Saxena 2023).

Answers quote their context: a RAG answer its documents, an agent its history, code its own names. The index knows where every
n-gram of a growing token list last ended, so that a lookup costs a few dictionary reads, whatever the length.
"""

from __future__ import annotations

from collections.abc import Iterable


class PromptLookupIndex:
    """Where each n-gram of a token list last ended.

    >>> index = PromptLookupIndex([1, 2, 3, 4, 1, 2], min_ngram_size=2, max_ngram_size=3)
    >>> index.propose(2)
    [3, 4]
    >>> index.extend([9]); index.propose(2)
    []

    Args:
        token_ids: the prompt.
        min_ngram_size, max_ngram_size: sizes of the n-grams that are looked up, the longest first.
    """

    def __init__(self, token_ids: Iterable[int], *, min_ngram_size: int, max_ngram_size: int) -> None:
        self._sizes = range(max_ngram_size, min_ngram_size - 1, -1)
        self._token_ids: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token that followed it
        self.extend(token_ids)

    def extend(self, token_ids: Iterable[int]) -> None:
        """Append tokens. The n-grams that end in the newest token are not entered before something follows them."""
        for token_id in token_ids:
            end = len(self._token_ids)
            for size in self._sizes:
                if size <= end:
                    self._ends[tuple(self._token_ids[end - size :])] = end
            self._token_ids.append(token_id)

    def tail(self, size: int) -> list[int]:
        """The last `size` tokens, or all."""
        return self._token_ids[-size:]

    def propose(self, max_tokens: int) -> list[int]:
        """What followed the last occurrence of the longest known n-gram that the list ends in; at most `max_tokens`.

        A continuation that reaches the end of the list goes on periodically, as repetition does.
        """
        if max_tokens <= 0:
            return []
        for size in self._sizes:
            start = self._ends.get(tuple(self._token_ids[-size:])) if size <= len(self._token_ids) else None
            if start is not None:
                period = len(self._token_ids) - start
                return [self._token_ids[start + offset % period] for offset in range(max_tokens)]
        return []
