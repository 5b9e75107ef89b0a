"""The way from somewhere in a grammar to the end of a sentence, in few tokens.

A descent goes straight for the end: at each choice it takes what looks most like one. That is right nearly always, and then nothing
else is looked at. Where it is not, or is too long, the search takes the second, third, ... best at some choice of a descent and
descends from there, the most promising first. States cannot be compared, so two are taken for the same when the same may come next
in both and a descent goes the same way from both.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from llguidance import LLMatcher

from eft_engine.text.landmarks import Landmarks
from eft_engine.text.spelling import Alphabet, Spelling

STRUCTURE = b'}]",10nTtf'
"""What brings a JSON value to its end outside of strings, the best first. A comma ends a number that a digit would make longer, a 1
is part of more dates than a 0, and T opens a time.
"""

QUOTE = b'"'
IN_STRING = sum(1 << byte for byte in b"#, (;")
"""Where all of these may come, the text is inside a JSON string of any kind, and a quote ends it."""

PUNCTUATION = b"@.:/-_,;)]}>\"'|=+*#&%!?([{<~^$`\\"
"""Signs, those first that separate the parts of names, addresses and times."""

FILLING = b"a1023456789ABCDEFGHIJKLMNOPQRSTUVWXYZbcdefghijklmnopqrstuvwxyz"
"""What is written where any character will do until there are enough of them."""

TURNS = b"1" + PUNCTUATION + b"a"
"""What is written, each once, where something must bring the text forward and nothing shows what."""

LETTERS = bytes(own for own in FILLING if chr(own).isalpha())
UNITS = PUNCTUATION + LETTERS
"""The same behind digits where only `FEW_LETTERS` may come: one of them is a unit."""

FEW_LETTERS = 5

CHEAP_FILLING = b" -=_*.0x"
"""What may fill the same place with fewer tokens."""

ALL_LETTERS = sum(1 << byte for byte in LETTERS)
ALL_DIGITS = sum(1 << byte for byte in b"0123456789")
BY_PROMISE = {byte: rank for rank, byte in enumerate(dict.fromkeys((*PUNCTUATION, *FILLING, *range(256))))}
FILLING_FIRST = {byte: rank for rank, byte in enumerate(dict.fromkeys((*FILLING, *PUNCTUATION, *range(256))))}

REACH, SHORT_REACH = 2048, 256
"""Most symbols of the first descent of a search, and of a later one."""

TOO_LONG = 32
"""How far a descent goes beyond what an ending may have: one that is too long still shows where it might have been shorter."""

NEVER = 1_000_000
"""Tokens that a descent without an end promises."""

SYMBOLS_PER_CHOICE = 4
"""A symbol costs so much less than a choice."""

WORTH_REFILLING = 3
"""From so many places on that any character fills, others are tried."""

NUM_CHOICES = 48
"""On so many places of a descent, from its start, another way is tried."""

NUM_ALIKE = 2
"""Of the places of a descent without an end that look the same, so many count."""

AGAIN, LATER, LAST = 2, 8, 1000
"""How much later other ways are tried, in tokens that their descents promise to have: behind another way, inside of strings, and
from a state that seems to be known.
"""


@dataclass(frozen=True)
class Choice:
    """A place behind `at` symbols where another one might have come: what may come there (special tokens, and a bit for each byte),
    and what was taken.
    """

    at: int
    special: tuple[int, ...]
    allowed: int
    taken: int

    @property
    def is_in_string(self) -> bool:
        """Whether this is inside a JSON string that any character may continue."""
        return self.allowed & IN_STRING == IN_STRING


@dataclass(frozen=True)
class Descent:
    """Symbols of a descent, its choices, the places where any character would have done, and whether it came to an end."""

    symbols: tuple[int, ...]
    choices: tuple[Choice, ...]
    filled: tuple[int, ...]
    is_complete: bool


def taken(matcher: LLMatcher, token_ids: Sequence[int]) -> LLMatcher | None:
    """A copy of a matcher that has taken these tokens; None where the grammar does not allow them."""
    copy = matcher.deep_copy()
    return copy if copy.try_consume_tokens(list(token_ids)) == len(token_ids) else None


def is_accepting(matcher: LLMatcher) -> bool:
    """Whether the text is a sentence."""
    return not matcher.is_error() and bool(matcher.is_stopped() or matcher.is_accepting())


def leads_to_end(matcher: LLMatcher, token_ids: Sequence[int]) -> bool:
    """Whether the text is a sentence behind these tokens."""
    behind = taken(matcher, token_ids)
    return behind is not None and is_accepting(behind)


@dataclass(frozen=True)
class Place:
    """Where a text stands in its grammar, over tokens and over symbols."""

    tokens: LLMatcher
    symbols: LLMatcher


class EndingSearch:
    """Looks for endings in one grammar.

    Args:
        never: tokens that are not to be used.
    """

    def __init__(self, alphabet: Alphabet, landmarks: Landmarks, *, never: Collection[int] = ()) -> None:
        self._alphabet = alphabet
        self._landmarks = landmarks
        self._never = never

    def find(self, place: Place, max_tokens: int, *, effort: int) -> Spelling | None:
        """An ending of at most `max_tokens` tokens, or None where none was found in `effort` choices."""
        frontier = _Frontier(self._other_ways)
        path: tuple[int, ...] = ()
        max_len = max_tokens * self._alphabet.longest
        strayed, reach = 0, REACH
        while effort > 0:
            descent = self._descend(place.symbols, path, min(reach, max_len + TOO_LONG))
            effort, reach = effort - 1, SHORT_REACH
            if descent is not None:
                effort -= len(descent.choices) + len(descent.symbols) // SYMBOLS_PER_CHOICE
                ending = self._spell(place, descent, max_tokens) if descent.is_complete else None
                if ending is not None and ending.costs[0] <= max_tokens:
                    return ending
                promise = NEVER if ending is None else min(ending.costs[0], NEVER)
                frontier.add(descent, promise=promise, strayed=strayed)
            following = frontier.next(max_len=max_len)
            if following is None:
                break
            path, strayed = following
        return None

    # ---- descents ------------------------------------------------------------------------------------------------------

    def _descend(self, matcher: LLMatcher, path: tuple[int, ...], reach: int) -> Descent | None:
        """From where the matcher stands along `path`, and on towards an end; None where the path is barred."""
        behind = taken(matcher, path)
        if behind is None:
            return None
        symbols = list(path)
        choices: list[Choice] = []
        filled: list[int] = []
        used: Counter[int] = Counter()
        before: Choice | None = None  # at the last symbol
        while not (is_complete := is_accepting(behind)) and len(symbols) < len(path) + reach:
            step = tuple(behind.compute_ff_bytes().partition(b"\xff")[0])
            if step:
                before = None
            else:
                special, allowed = self._possible(behind)
                if not special and not allowed:
                    break
                symbol, fills = self._best(special, allowed, before, used)
                filled += [len(symbols)] if fills else []
                before = Choice(len(symbols), special, allowed, symbol)
                choices.append(before)
                used[symbol] += 1
                step = (symbol,)
            if behind.try_consume_tokens(list(step)) < len(step):
                break
            symbols += step
        return Descent(tuple(symbols), tuple(choices), tuple(filled), is_complete)

    def _possible(self, matcher: LLMatcher) -> tuple[tuple[int, ...], int]:
        """Special tokens that the grammar knows by name, and a bit for each byte that has a token, of those that may come."""
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            return (), 0
        special = tuple(own for own in self._landmarks.special if mask[own >> 3] >> (own & 7) & 1)
        return special, int.from_bytes(mask[:32], "little") & self._alphabet.writable

    def _best(
        self, special: tuple[int, ...], allowed: int, before: Choice | None, used: Counter[int]
    ) -> tuple[int, bool]:
        """The symbol that looks most like the end, and whether many others would do.

        What a symbol has just made possible brings the text forward. Where nothing changes a sign may, and a letter only fills.
        """
        for symbol in special:
            if not used[symbol] or not allowed:
                return symbol, False
        in_string, ends_string = allowed & IN_STRING == IN_STRING, allowed >> QUOTE[0] & 1
        if before is None or before.allowed != allowed:
            has_grown = before is not None and not before.allowed & ~allowed
            new = allowed & ~before.allowed if before is not None and has_grown else 0
            few_new = new if before is not None and new.bit_count() <= before.allowed.bit_count() else 0
            for byte in QUOTE if in_string else STRUCTURE:
                if (few_new or allowed) >> byte & 1:
                    return byte, False
            if few_new:
                return min(_bytes_of(few_new), key=lambda byte: (used[byte], BY_PROMISE[byte])), False
        elif ends_string or not in_string:
            few_letters = 0 < (allowed & ALL_LETTERS).bit_count() <= FEW_LETTERS
            turns = TURNS if ends_string else UNITS if few_letters and allowed & ALL_DIGITS else PUNCTUATION
            for byte in turns:
                if allowed >> byte & 1 and not used[byte]:
                    return byte, False
        if before is not None and before.taken in FILLING and allowed >> before.taken & 1:
            return before.taken, True
        return min(_bytes_of(allowed), key=FILLING_FIRST.__getitem__), True

    def _spell(self, place: Place, descent: Descent, max_tokens: int) -> Spelling | None:
        """An end in tokens; what fills the way there is chosen again where that may save some. None: over tokens it is no end."""
        best = self._alphabet.spell(descent.symbols, never=self._never)
        if best.costs[0] > max_tokens and len(descent.filled) >= WORTH_REFILLING:
            for filler in CHEAP_FILLING:
                symbols = list(descent.symbols)
                for index in descent.filled:
                    symbols[index] = filler
                other = self._alphabet.spell(symbols, never=self._never)
                if other.costs[0] < best.costs[0] and leads_to_end(place.tokens, other.tokens_behind(0)):
                    best = other
        if best.costs[0] > max_tokens or leads_to_end(place.tokens, best.tokens_behind(0)):
            return best
        return None

    def _other_ways(self, choice: Choice, path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """What else might come at a choice, behind the path to it, the most promising first."""
        yield from ((*path, symbol) for symbol in choice.special if symbol != choice.taken)
        yield from ((*path, *word) for word in self._landmarks.words)
        first = TURNS if choice.is_in_string else STRUCTURE
        for byte in dict.fromkeys((*first, *PUNCTUATION, *FILLING, *range(256))):
            if choice.allowed >> byte & 1 and byte != choice.taken:
                yield (*path, byte)


_Fingerprint = tuple[tuple[int, ...], int, tuple[int, ...]]
"""What may come, special tokens and bytes, and where a descent goes from there."""


class _Frontier:
    """Ways that were not taken yet."""

    def __init__(self, ways: Callable[[Choice, tuple[int, ...]], Iterator[tuple[int, ...]]]) -> None:
        self._ways = ways
        self._queue: list[tuple[float, int, int, Iterator[tuple[int, ...]]]] = []
        self._order = itertools.count()
        self._seen: dict[_Fingerprint, int] = {}

    def add(self, descent: Descent, *, promise: float, strayed: int) -> None:
        """Note the choices of a descent: how many tokens it promises to have, and how far its start had strayed."""
        alike: Counter[_Fingerprint] = Counter()
        for choice in descent.choices[:NUM_CHOICES]:
            rest = descent.symbols[choice.at :] if descent.is_complete else ()
            state = (choice.special, choice.allowed, rest)
            alike[state] += 1
            if descent.is_complete:
                is_known = self._seen.get(state, choice.at + 1) <= choice.at
            else:
                is_known = alike[state] > NUM_ALIKE
            self._seen[state] = min(choice.at, self._seen.get(state, choice.at))
            astray = strayed + AGAIN + (LATER if choice.is_in_string and descent.is_complete else 0)
            astray += LAST if is_known else 0
            ways = self._ways(choice, descent.symbols[: choice.at])
            heapq.heappush(self._queue, (promise + astray, astray, next(self._order), ways))

    def next(self, *, max_len: int) -> tuple[tuple[int, ...], int] | None:
        """The most promising way of at most `max_len` symbols, and how far it strays from the best choices."""
        while self._queue:
            priority, strayed, order, ways = heapq.heappop(self._queue)
            path = next((own for own in ways if len(own) <= max_len), None)
            if path is not None:
                heapq.heappush(self._queue, (priority + 1, strayed + 1, order, ways))
                return path, strayed
        return None


def _bytes_of(bits: int) -> list[int]:
    return [byte for byte in range(256) if bits >> byte & 1]
