"""Token ids to text while they arrive: whole characters only, and nothing that may still become a stop string.

A token's text is not always the text of its ids alone: a character may be split over several byte tokens, and some tokenizers
drop a leading space at the start of a text. So the newest ids are decoded together with a few before them, and a piece is
released when it no longer ends in the replacement character (U+FFFD), which stands for an unfinished one.

Bytes that are no text at all would be held back for ever; after `MAX_HELD_TOKENS` all of them but the last few, which may still
become a character, are released as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eft_engine.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"

MAX_HELD_TOKENS = 8
"""From so many held tokens on, those that cannot belong to the unfinished character are released."""

MAX_UNFINISHED_TOKENS = 3
"""An unfinished character has at most so many tokens: UTF-8 needs 4 bytes at most, and the last one is missing."""


class IncrementalDetokenizer:
    """Decodes a growing list of token ids.

    The pieces joined equal `tokenizer.decode(token_ids, skip_special_tokens=...)`. Tokenizers with byte fallback (Llama 2) are
    the exception where bytes are invalid: they take back characters that stood complete before the invalid byte.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._special_ids = frozenset(tokenizer.all_special_ids if skip_special_tokens else ())
        self._token_ids: list[int] = []
        self._prefix_start = 0  # ids before this one no longer influence new text
        self._read_end = 0  # ids before this one are released

    def add(self, token_ids: Sequence[int]) -> str:
        """Text that became certain with these ids."""
        pieces = []
        for (
            token_id
        ) in token_ids:  # one by one: a character is released when it is whole, before bytes of the next one follow
            if token_id not in self._special_ids:
                self._token_ids.append(token_id)
                pieces.append(self._release(final=False))
        return "".join(pieces)

    def flush(self) -> str:
        """What is still held back: bytes that never became a character."""
        return self._release(final=True)

    def _release(self, *, final: bool) -> str:
        end = len(self._token_ids)
        if end == self._read_end:
            return ""
        text = self._decode(self._prefix_start, end)
        if text.endswith(REPLACEMENT) and not final:
            end = self._certain_end(text)
            if end == self._read_end:
                return ""
            text = self._decode(self._prefix_start, end)
        before = self._decode(self._prefix_start, self._read_end)
        self._prefix_start, self._read_end = self._read_end, end
        return text[len(before) :]

    def _certain_end(self, text: str) -> int:
        """Where a text with an unfinished end can be cut, so that no character that may still come is cut through.

        A cut through a character shows: the two parts decode to other text than the whole.
        """
        newest = len(self._token_ids)
        if newest - self._read_end >= MAX_HELD_TOKENS:
            for end in range(newest - MAX_UNFINISHED_TOKENS, newest):
                if self._decode(self._prefix_start, end) + self._decode(end, newest) == text:
                    return end
        return self._read_end

    def _decode(self, start: int, end: int) -> str:
        return str(self._tokenizer.decode(self._token_ids[start:end], skip_special_tokens=self._skip_special_tokens))


@dataclass(frozen=True)
class TextPiece:
    """Released text; `stop` is the stop string that ended it, if one did."""

    text: str
    stop: str | None = None


class StopStringFilter:
    """Holds back the end of a text while it may be the beginning of a stop string.

    >>> stops = StopStringFilter(("END",))
    >>> stops.add("a E"), stops.add("Nx"), stops.add(" END more")
    (TextPiece(text='a ', stop=None), TextPiece(text='ENx', stop=None), TextPiece(text=' ', stop='END'))
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""

    def add(self, text: str) -> TextPiece:
        """Text that can be released now; after a stop string was met, the text before it.

        Of several stop strings that one is met which is complete first, and the longest of those that end together. So it
        does not matter in which pieces the text comes.
        """
        text = self._held + text
        found = [(text.index(stop) + len(stop), -len(stop), stop) for stop in self._stop if stop in text]
        if found:
            end, _, stop = min(found)
            self._held = ""
            return TextPiece(text[: end - len(stop)], stop)
        num_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        return TextPiece(text[: len(text) - num_held])

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
