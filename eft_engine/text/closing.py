"""Bringing the sentence of a grammar to its end inside a budget.

A way to an end is known from the start, and behind every token another one that fits into what is left. A token behind which none
is found is replaced by the first token of the way that is known. So a sentence becomes whole if an ending fitted at the start.

Most ways cost little to find: the old one still leads to an end behind a token inside a string, and the rest of it does behind a
token that is on it. Whatever is decided depends on the tokens before alone, and so not on drafts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from eft_engine.text.endings import EndingSearch, Place, is_accepting, leads_to_end, taken
from eft_engine.text.landmarks import Landmarks
from eft_engine.text.spelling import Alphabet, Spelling

EFFORT_AT_START = 5_000
"""How long a way is looked for before the first token, in choices; each takes some ten microseconds."""

EFFORT = 300
"""The same behind a token. What is not found then costs that token its place, and no text its end."""


@dataclass(frozen=True)
class Way:
    """What is left of an ending behind its first `at` symbols."""

    ending: Spelling
    at: int = 0

    @property
    def symbols(self) -> tuple[int, ...]:
        """Symbols to the end."""
        return self.ending.symbols[self.at :]

    @property
    def num_tokens(self) -> float:
        """Tokens to the end."""
        return self.ending.costs[self.at]

    @property
    def token_ids(self) -> list[int]:
        """These tokens."""
        return self.ending.tokens_behind(self.at)

    def behind(self, num_symbols: int) -> Way:
        """What is left after so many symbols of it."""
        return Way(self.ending, self.at + num_symbols)


AT_AN_END = Way(Spelling((), (0.0,), (-1,), (0,)))
"""From a text that is a sentence."""


@dataclass(frozen=True)
class Step:
    """A token that was taken: its symbols where the place moved by it, the way that was known before it, and whether it stands for
    another.
    """

    symbols: tuple[int, ...] | None
    way_before: Way | None
    is_replacement: bool


class Closing:
    """The way out of one text. Belongs to the engine's thread once its request is submitted.

    Args:
        place: where the text begins.
        max_tokens: the budget.
        eos_token_ids: tokens that end a complete text.
        never: tokens that must not be written.
    """

    def __init__(
        self,
        place: Place,
        *,
        alphabet: Alphabet,
        landmarks: Landmarks,
        max_tokens: int,
        eos_token_ids: frozenset[int],
        never: Collection[int] = (),
    ) -> None:
        self._place = place
        self._alphabet = alphabet
        self._eos_token_ids = eos_token_ids
        self._end = min(eos_token_ids.difference(never), default=None)
        self._search = EndingSearch(alphabet, landmarks, never=never)
        self._steps: list[Step] = []
        self._way = self._find(place, max_tokens, effort=EFFORT_AT_START)

    @property
    def num_tokens_left(self) -> float | None:
        """Tokens of the way that is known; None: none was found at the start, and nothing is replaced."""
        return None if self._way is None else self._way.num_tokens

    def was_steered(self, num_tokens: int) -> bool:
        """Whether one of the first tokens stands for another."""
        return any(step.is_replacement for step in self._steps[:num_tokens])

    def choose(self, token_id: int, *, remaining: int) -> int:
        """Take the next token: this one, or, where behind it no end were in reach, one on the way to an end.

        Args:
            token_id: one that the grammar allows.
            remaining: tokens that may still be generated, this one included.
        """
        way = self._way
        if way is None or token_id in self._eos_token_ids:
            return self._take(token_id, way)
        place = self._behind(token_id)
        way_behind = None if place is None else self._way_behind(way, token_id, place, remaining - 1)
        if way_behind is not None:
            return self._take(token_id, way_behind, place)
        if way.symbols:
            token_id = way.token_ids[0]
            way_behind = way.behind(way.ending.sizes[way.at])
            return self._take(token_id, way_behind, self._behind(token_id), is_replacement=True)
        if self._end is None:  # nothing says that the text ends here
            return self._take(token_id, None)
        return self._take(self._end, way, is_replacement=True)

    def rewind(self, num_tokens: int) -> None:
        """Forget all but the first tokens."""
        while len(self._steps) > num_tokens:
            step = self._steps.pop()
            if step.symbols is not None:
                self._place.tokens.rollback(1)
                self._place.symbols.rollback(len(step.symbols))
            self._way = step.way_before

    def _behind(self, token_id: int) -> Place | None:
        """The place behind a token; None where one of the matchers gives up."""
        tokens = taken(self._place.tokens, [token_id])
        symbols = taken(self._place.symbols, self._alphabet.symbols(token_id))
        return None if tokens is None or symbols is None else Place(tokens, symbols)

    def _take(
        self, token_id: int, way_behind: Way | None, place: Place | None = None, *, is_replacement: bool = False
    ) -> int:
        symbols = None if place is None else self._alphabet.symbols(token_id)
        self._steps.append(Step(symbols, self._way, is_replacement))
        self._way = way_behind
        self._place = self._place if place is None else place
        return token_id

    def _way_behind(self, way: Way, token_id: int, place: Place, max_tokens: int) -> Way | None:
        """A way of at most `max_tokens` from the place behind a token: the rest of the known one, or all of it, or another."""
        known, symbols = way.symbols, self._alphabet.symbols(token_id)
        if known and way.token_ids[0] == token_id:
            return way.behind(len(symbols))
        if is_accepting(place.tokens):
            return AT_AN_END
        for size in range(min(len(symbols), len(known)), -1, -1):
            if symbols[len(symbols) - size :] == known[:size]:
                rest = way.behind(size)
                if rest.num_tokens <= max_tokens and leads_to_end(place.tokens, rest.token_ids):
                    return rest
        return self._find(place, max_tokens, effort=EFFORT)

    def _find(self, place: Place, max_tokens: int, *, effort: int) -> Way | None:
        ending = self._search.find(place, max_tokens, effort=effort)
        return None if ending is None else Way(ending)
