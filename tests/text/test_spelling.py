"""Symbols of a vocabulary, and texts in as few of its tokens as possible."""

from __future__ import annotations

import math
import random

import llguidance.hf
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eft_engine.text.spelling import FIRST_SPECIAL, Alphabet

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


def alphabet_of(*pieces: str, special: tuple[str, ...] = ("<end>", "<call>"), **options: object) -> Alphabet:
    """All bytes, then pieces of several ASCII characters, then special tokens; the first of these ends texts."""
    vocab = {char: index for index, char in enumerate(LETTERS)}
    vocab |= {piece: len(vocab) + index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    given = {"width": len(tokenizer), "masked_ids": (), "eos_token_ids": frozenset([len(vocab)])} | options
    return Alphabet(llguidance.hf.from_tokenizer(tokenizer), **given)  # type: ignore[arg-type]


def fewest(text: str, pieces: tuple[str, ...]) -> int:
    """Tokens of a text, by trying everything."""
    if not text:
        return 0
    starts = [text[0], *(piece for piece in pieces if text.startswith(piece))]
    return 1 + min(fewest(text[len(start) :], pieces) for start in starts)


def test_texts_are_written_in_the_fewest_tokens() -> None:
    chance = random.Random(0)
    for _ in range(40):
        pieces = tuple({"".join(chance.choices("ab", k=chance.randint(2, 4))) for _ in range(5)})
        alphabet = alphabet_of(*pieces)
        text = "".join(chance.choices("ab", k=12))
        spelling = alphabet.spell(tuple(text.encode()))
        assert spelling.costs == tuple(fewest(text[at:], pieces) for at in range(13))
        for at in range(13):
            tokens = spelling.tokens_behind(at)
            assert len(tokens) == spelling.costs[at]
            assert bytes(own for token in tokens for own in alphabet.symbols(token)) == text[at:].encode()


def test_special_tokens_are_symbols_of_their_own_and_are_not_written_with_bytes() -> None:
    alphabet = alphabet_of("ab")
    call = 258
    assert alphabet.special_ids == {call}
    assert alphabet.name(call) == "<call>"
    assert alphabet.symbols(call) == (FIRST_SPECIAL + call,)
    spelling = alphabet.spell((*b"a", FIRST_SPECIAL + call, *b"b"))
    assert spelling.costs == (3, 2, 1, 0)
    assert spelling.tokens_behind(1)[0] == call


def test_tokens_that_are_barred_are_not_used() -> None:
    pair = 256
    assert alphabet_of("ab").spell(b"ab").tokens_behind(0) == [pair]
    assert alphabet_of("ab").spell(b"ab", never=[pair]).costs[0] == 2
    assert alphabet_of("ab", masked_ids=[pair]).spell(b"ab").costs[0] == 2
    assert alphabet_of("ab", width=pair).spell(b"ab").costs[0] == 2
    assert alphabet_of().spell((FIRST_SPECIAL + 257,), never=[257]).costs[0] == math.inf


def test_bytes_without_a_token_cannot_be_written() -> None:
    alphabet = alphabet_of(masked_ids=[LETTERS.index("q")])
    assert alphabet.spell(b"aqa").costs == (math.inf, math.inf, 1, 0)
    assert not alphabet.writable >> ord("q") & 1
    assert alphabet.writable >> ord("a") & 1


@pytest.mark.parametrize(
    ("lark", "translated"),
    [
        ('start: "a"', 'start: "a"'),
        ("start: <[7]> <call>", "start: <[263]> <call>"),
        ("start: <[^7,9-11]>{0,20} <[7]>", "start: <[^263,265-267]>* <[263]>"),
        ("start: <[1]>{3} /a{3}/", "start: <[257]>* /a{3}/"),
    ],
)
def test_grammars_name_symbols_instead_of_tokens(lark: str, translated: str) -> None:
    assert alphabet_of().translated(lark) == translated
