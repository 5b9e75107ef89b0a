"""A vocabulary by the bytes of its tokens: an ending is looked for byte by byte, and written in the fewest tokens.

A symbol is a byte, or a special token: `FIRST_SPECIAL` + its id. Symbols have a vocabulary of their own, whose masks cost
microseconds. A grammar is read over it as over the tokens, but for token ids that it names, and tokens that it counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from llguidance import LLTokenizer, TokenizerWrapper

FIRST_SPECIAL = 256

LONGEST_PIECE = 16
"""Longer tokens are runs of one character; not using them costs a token or two."""


@dataclass(frozen=True)
class Spelling:
    """Symbols and the tokens that write them. What follows the first `at` symbols takes `costs[at]` tokens (inf: it cannot be
    written), the first of which is `token_ids[at]` and stands for `sizes[at]` symbols.
    """

    symbols: tuple[int, ...]
    costs: tuple[float, ...]
    token_ids: tuple[int, ...]
    sizes: tuple[int, ...]

    def tokens_behind(self, at: int) -> list[int]:
        """All tokens of what follows the first `at` symbols."""
        tokens = []
        while at < len(self.symbols):
            tokens.append(self.token_ids[at])
            at += self.sizes[at]
        return tokens


class Alphabet:
    """The symbols of one tokenizer. May be used from any thread.

    Args:
        ll_tokenizer: the tokenizer as llguidance reads it.
        width: token ids from here on are never generated.
        masked_ids: nor are these.
        eos_token_ids: tokens that end a text; they are no symbols.
    """

    def __init__(
        self, ll_tokenizer: LLTokenizer, *, width: int, masked_ids: Collection[int], eos_token_ids: frozenset[int]
    ) -> None:
        self._tokens = ll_tokenizer
        never = eos_token_ids.union(masked_ids)
        usable = [own for own in range(min(width, ll_tokenizer.vocab_size)) if own not in never]
        self.special_ids = frozenset(own for own in usable if ll_tokenizer.is_special_token(own) and self.name(own))
        texts = {own: ll_tokenizer.decode_bytes([own]) for own in usable if own not in self.special_ids}
        # Of tokens with one text the last one counts: the first is a byte of a vocabulary that has characters as well.
        self._pieces = {text: own for own, text in texts.items() if text}
        self.longest = min(max(map(len, self._pieces), default=1), LONGEST_PIECE)
        """Most bytes that a token stands for."""
        self.writable = sum(1 << byte for byte in set(b"".join(self._pieces)))
        """A bit for each byte that some token has."""
        self.ll_tokenizer = LLTokenizer(TokenizerWrapper(_Symbols(self)), slices=[])
        """Symbols as llguidance reads them."""

    def name(self, token_id: int) -> str:
        """Text of a special token."""
        return self._tokens.decode_bytes([token_id]).decode(errors="replace")

    def symbols(self, token_id: int) -> tuple[int, ...]:
        """What a token consists of."""
        if token_id in self.special_ids:
            return (FIRST_SPECIAL + token_id,)
        return tuple(self._tokens.decode_bytes([token_id]))

    def translated(self, lark: str) -> str:
        """A Lark grammar over symbols: `<[151668]>` is another number, and `<[^7]>{0,20}` counts nothing."""
        shifted = re.sub(
            r"<\[[^\[\]]*\]>",
            lambda found: re.sub(r"\d{1,18}", lambda own: str(FIRST_SPECIAL + int(own[0])), found[0]),
            lark,
        )
        return re.sub(r"(<\[[^\[\]]*\]>)\{[\d, ]*\}", r"\1*", shifted)

    def spell(self, symbols: Sequence[int], *, never: Collection[int] = ()) -> Spelling:
        """The fewest tokens that write the symbols, none of `never` among them."""
        costs, token_ids, sizes = [0.0], [-1], [0]  # from the end
        text = b""  # from here to the next special token, or as much as a token may have
        for symbol in reversed(symbols):
            best, chosen, size = math.inf, -1, 1
            if symbol >= FIRST_SPECIAL:
                text = b""
                if symbol - FIRST_SPECIAL not in never:
                    best, chosen = 1 + costs[-1], symbol - FIRST_SPECIAL
            else:
                text = bytes([symbol]) + text[: self.longest - 1]
                for length in range(len(text), 0, -1):
                    if 1 + costs[-length] < best:
                        token_id = self._pieces.get(text[:length])
                        if token_id is not None and token_id not in never:
                            best, chosen, size = 1 + costs[-length], token_id, length
            costs.append(best)
            token_ids.append(chosen)
            sizes.append(size)
        return Spelling(tuple(symbols), tuple(costs[::-1]), tuple(token_ids[::-1]), tuple(sizes[::-1]))


class _Symbols:
    """What llguidance wants to know of a tokenizer."""

    bos_token_id = None

    def __init__(self, alphabet: Alphabet) -> None:
        self.special_token_ids = [FIRST_SPECIAL + own for own in sorted(alphabet.special_ids)]
        self.eos_token_id = max([FIRST_SPECIAL, *self.special_token_ids]) + 1
        self.tokens = [b""] * (self.eos_token_id + 1)
        self.tokens[:255] = [bytes([byte]) for byte in range(255)]  # 255 is in no text, and marks special tokens
        for own in alphabet.special_ids:
            self.tokens[FIRST_SPECIAL + own] = alphabet.name(own).encode()

    def __call__(self, text: bytes) -> list[int]:
        return list(text)
