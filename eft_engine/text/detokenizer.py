"""Token ids to text while they arrive: whole characters only, and nothing that may still become a stop string.

A token's text is not always the text of its ids alone: a character may be split over several byte tokens, and some tokenizers
drop a leading space at the start of a text. So the newest ids are decoded together with a few before them, and the text is
released up to the replacement characters (U+FFFD) at its end, the last of which may stand for an unfinished character.

Bytes that are no text at all would be held back for ever; after `MAX_HELD_TOKENS` all of them but the last few, which may still
become a character, are released as they are.

Control tokens are left out of the text, and can stop it all the same: a stop string that contains the text of one ("<|im_end|>") is
looked for in the text with control tokens written out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from eft_engine.text.tokenizer import Tokenizer, skipped_tokens

REPLACEMENT = "\ufffd"

MAX_HELD_TOKENS = 8
"""From so many held tokens on, those that cannot belong to the unfinished character are released."""

MAX_UNFINISHED_TOKENS = 3
"""An unfinished character has at most so many tokens: UTF-8 needs 4 bytes at most, and the last one is missing."""


class IncrementalDetokenizer:
    """Decodes a growing list of token ids.

    The pieces joined equal `tokenizer.decode(token_ids, skip_special_tokens=...)`. Tokenizers with byte fallback (Llama 2) are
    the exception where bytes are invalid: they take back characters that stood complete before the invalid byte.

    Args:
        tokenizer: decodes.
        skip_special_tokens: leave control tokens out.
        skipped: ids of the tokens that this leaves out; None: the tokenizer is asked.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, skipped: Collection[int] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._skipped: Collection[int] = ()
        if skip_special_tokens:
            self._skipped = skipped_tokens(tokenizer) if skipped is None else skipped
        self._token_ids: list[int] = []
        self._prefix_start = 0  # ids before this one no longer influence new text
        self._read_end = 0  # ids before this one are released
        self._num_early = 0  # characters behind them that are released too

    @property
    def holds_text(self) -> bool:
        """Whether something is held back."""
        return self._read_end < len(self._token_ids)

    def add(self, token_ids: Sequence[int]) -> str:
        """Text that became certain with these ids."""
        pieces = []
        for (
            token_id
        ) in token_ids:  # one by one: a character is released when it is whole, before bytes of the next one follow
            if token_id not in self._skipped:
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
        is_unfinished = text.endswith(REPLACEMENT) and not final
        if is_unfinished:
            end = self._certain_end(text)
        before = self._decode(self._prefix_start, self._read_end)
        if is_unfinished and end == self._read_end:
            certain = text[len(before) :].rstrip(REPLACEMENT)
            released, self._num_early = certain[self._num_early :], max(self._num_early, len(certain))
            return released
        new = self._decode(self._prefix_start, end)[len(before) :]
        released, self._num_early = new[self._num_early :], max(self._num_early - len(new), 0)
        self._prefix_start, self._read_end = self._read_end, end
        return released

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

    Args:
        stop: the stop strings.
        controls: texts of control tokens. Stop strings that contain one are looked for in the text with hidden tokens written
            out, all others in the text without them.

    >>> stops = StopStringFilter(("END",))
    >>> stops.add("a E"), stops.add("Nx"), stops.add(" END more")
    (TextPiece(text='a ', stop=None), TextPiece(text='ENx', stop=None), TextPiece(text=' ', stop='END'))
    >>> StopStringFilter(("<|end|>",), controls=["<|end|>"]).add("a b", hidden="<|end|>")
    TextPiece(text='a b', stop='<|end|>')
    """

    def __init__(self, stop: Sequence[str], *, controls: Collection[str] = ()) -> None:
        self._of_all = tuple(own for own in stop if any(text in own for text in controls))
        self._of_visible = tuple(own for own in stop if own not in self._of_all)
        self._held = ""  # hidden tokens written out
        self._places: list[int] = []  # of the visible characters in it

    def add(self, text: str, *, hidden: str = "") -> TextPiece:
        """Text that can be released now; after a stop string was met, the text before it.

        Of several stop strings that one is met which is complete first, and the longest of those that end together. So it
        does not matter in which pieces the text comes.

        Args:
            text: what is visible.
            hidden: the text of a token behind it that is not.
        """
        self._places += range(len(self._held), len(self._held) + len(text))
        self._held += text + (hidden if self._of_all else "")
        visible = "".join(self._held[place] for place in self._places)
        found = [
            (self._places[start + len(stop) - 1] + 1, -len(stop), start, stop)
            for stop in self._of_visible
            if (start := visible.find(stop)) >= 0
        ]
        found += [
            (start + len(stop), -len(stop), bisect_left(self._places, start), stop)
            for stop in self._of_all
            if (start := self._held.find(stop)) >= 0
        ]
        if found:
            _, _, num_released, stop = min(found)
            self._held, self._places = "", []
            return TextPiece(visible[:num_released], stop)
        return TextPiece(visible[: self._forget(visible)])

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        visible = "".join(self._held[place] for place in self._places)
        self._held, self._places = "", []
        return visible

    def _forget(self, visible: str) -> int:
        """Drop what cannot belong to a stop string any more; returns how many of the visible characters that are."""
        visible_start = len(visible) - max((_overlap(visible, stop) for stop in self._of_visible), default=0)
        start = len(self._held) - max((_overlap(self._held, stop) for stop in self._of_all), default=0)
        num_released = min(visible_start, bisect_left(self._places, start))
        start = min([start, *self._places[num_released : num_released + 1]])
        self._held = self._held[start:]
        self._places = [place - start for place in self._places[num_released:]]
        return num_released


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


class AnswerText:
    """The text of an answer while its tokens arrive, up to a stop string.

    Args:
        tokenizer: decodes.
        stop: the stop strings.
        skip_special_tokens: leave control tokens out of the text.
        skipped: these tokens, by id their texts.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, stop: Sequence[str], skip_special_tokens: bool, skipped: Mapping[int, str]
    ) -> None:
        self._skipped = skipped
        self._skips = skip_special_tokens
        self._detokenizer = IncrementalDetokenizer(
            tokenizer, skip_special_tokens=skip_special_tokens, skipped=skipped.keys()
        )
        self._stops = StopStringFilter(stop, controls=skipped.values() if stop else ())

    def add(self, token_id: int, *, is_end: bool, is_last: bool) -> TextPiece:
        """Text that can be released with this token.

        Args:
            token_id: the next token.
            is_end: it ends the answer, and its text is no part of it.
            is_last: no token follows.
        """
        text = "" if is_end else self._detokenizer.add([token_id])
        if is_end or is_last:
            text += self._detokenizer.flush()
        hidden = self._skipped.get(token_id, "") if is_end or self._skips else ""
        # A character whose last bytes are to come may still be in front of a hidden token: no stop string reaches over it.
        unfinished = REPLACEMENT if hidden and self._detokenizer.holds_text else ""
        piece = self._stops.add(text, hidden=unfinished + hidden)
        if piece.stop is not None:
            return TextPiece(piece.text + self._detokenizer.flush(), piece.stop) if unfinished else piece
        return TextPiece(piece.text + self._stops.flush()) if is_end or is_last else piece
