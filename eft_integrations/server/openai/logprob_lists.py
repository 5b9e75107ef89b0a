"""Log-probabilities of tokens in the form of completions: parallel lists."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass, field

from eft_engine.outputs import TokenLogprobs, TopToken
from eft_integrations.json_types import JsonObject

LOWEST = -9999.0
"""Stands for the logarithm of 0, which JSON cannot write."""


@dataclass(frozen=True)
class ListedToken:
    """A token of a prompt or of an answer.

    `logprob` is None for a prompt's first token, which nothing stands before. `own_text` is what the token adds to the text where
    its bytes do not say: nothing for a control token that is left out of it.
    """

    token: str
    utf8: tuple[int, ...] | None
    logprob: float | None
    top: tuple[TopToken, ...] = ()
    own_text: str = ""

    @classmethod
    def of(cls, token: TokenLogprobs) -> ListedToken:
        """A token of an answer."""
        return cls(token.token, token.utf8, token.logprob, token.top)

    @property
    def ranked(self) -> dict[str, float] | None:
        """The most probable tokens and this one itself, by their text. Of tokens with one text, as parts of characters have, the
        most probable one counts: so the highest number is this token's if and only if no other is more probable.
        """
        if self.logprob is None:
            return None
        found: dict[str, float] = {}
        for text, logprob in [(top.token, top.logprob) for top in self.top] + [(self.token, self.logprob)]:
            found[text] = max(found.get(text, LOWEST), logprob)
        return found


@dataclass
class Places:
    """Where tokens begin in a text, one after the other, in characters. A token inside of a character begins where that does."""

    place: int = 0
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def take(self, token: ListedToken) -> int:
        """Where the next token begins.

        >>> places = Places(3)
        >>> [places.take(ListedToken("", own, 0.0)) for own in (tuple(b"ab"), (0xC3,), (0xA4,), tuple(b"c"))]
        [3, 5, 5, 6]
        """
        begins = self.place
        self.place += len(token.own_text if token.utf8 is None else self._decoder.decode(bytes(token.utf8)))
        return begins


def lists_form(tokens: Iterable[ListedToken], places: Places) -> JsonObject:
    """The lists of these tokens, the next ones of a text."""
    listed = list(tokens)
    return {
        "tokens": [token.token for token in listed],
        "token_logprobs": [None if token.logprob is None else max(LOWEST, token.logprob) for token in listed],
        "top_logprobs": [token.ranked for token in listed],
        "text_offset": [places.take(token) for token in listed],
    }
