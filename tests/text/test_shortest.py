"""How many tokens a text has at least: never more than it has."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eft_engine.errors import ContextOverflowError
from eft_engine.text.encoding import LONG, Encoder
from eft_engine.text.shortest import BYTES as SIGNS
from eft_engine.text.shortest import CHUNK, Shortest
from tests.toy import make_tokenizer

TEXTS = [
    "",
    "a",
    "a" * 1000,
    " " * 1000,
    "ᄀ" * 300 + "ᅡ" * 300,
    "각" * 300,
    "e\u0301" * 500,
    "Ω" * 500,
    "<|end|>" * 200,
    "\x00\n\t" * 200,
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def with_fallback(
    normalizer: normalizers.Normalizer | None = None, *, fallback: bool = True
) -> PreTrainedTokenizerFast:
    """A tokenizer as SentencePiece makes them: a few words, and bytes for everything else."""
    words = ["<unk>", *BYTES, "a", "e", "é", "aa", "▁", "▁▁", "aaaa"]
    model = models.BPE(
        vocab={word: index for index, word in enumerate(words)},
        merges=[("a", "a"), ("aa", "aa"), ("▁", "▁")],
        byte_fallback=fallback,
        unk_token="<unk>",
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer or normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize(
    "tokenizer", [make_tokenizer(), make_tokenizer(extra_tokens=["<|a very long token|>"]), with_fallback()]
)
@pytest.mark.parametrize("text", TEXTS)
def test_no_text_has_fewer_tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    shortest = Shortest.of(tokenizer)
    assert shortest is not None
    assert shortest.at_least(text) <= len(tokenizer.encode(text, add_special_tokens=False))


def test_a_token_that_swallows_blanks_leaves_them_uncounted() -> None:
    tokenizer = with_fallback()
    tokenizer.add_tokens([AddedToken("<cut>", lstrip=True, normalized=False)])
    shortest = Shortest.of(tokenizer)
    text = " " * 10_000 + "<cut>"
    assert len(tokenizer.encode(text, add_special_tokens=False)) == 1
    assert shortest is not None
    assert shortest.at_least(text) <= 1


@pytest.mark.parametrize(
    "tokenizer",
    [
        with_fallback(fallback=False),
        with_fallback(normalizers.Strip()),
        with_fallback(normalizers.Replace("a", "")),
    ],
)
def test_where_much_may_become_nothing_nothing_is_certain(tokenizer: PreTrainedTokenizerFast) -> None:
    assert Shortest.of(tokenizer) is None


def test_blanks_that_are_dropped_are_not_certain_either() -> None:
    tokenizer = with_fallback()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert Shortest.of(tokenizer) is None


def test_a_long_text_does_not_wait_for_short_ones_nor_they_for_it() -> None:
    encoder, tokenizer = Encoder(), make_tokenizer()
    with encoder.turn:  # somebody has the turn of short texts
        assert len(encoder.encode(tokenizer, "a" * LONG, add_special_tokens=False)) == LONG


def test_what_just_fits_is_read_and_what_cannot_is_not() -> None:
    encoder, tokenizer = Encoder(), make_tokenizer()
    shortest = Shortest.of(tokenizer)
    assert shortest is not None
    fits = "<|assistant|>" * 10
    assert len(encoder.encode(tokenizer, fits, add_special_tokens=False, context_len=10)) == 10
    with pytest.raises(ContextOverflowError) as caught:
        encoder.encode(tokenizer, "a" * (shortest.bytes_per_token * 10 + 1), add_special_tokens=False, context_len=10)
    assert caught.value.prompt_len == 11


def test_signs_of_bytes_are_those_of_byte_level_vocabularies() -> None:
    assert set(SIGNS) == set(pre_tokenizers.ByteLevel.alphabet())


def test_a_text_is_looked_at_until_it_is_enough() -> None:
    shortest = Shortest(1000, longest_with=(1,) * 256)
    assert shortest.at_least("1" * 1_000_000) == 1_000_000
    assert shortest.at_least("1" * 1_000_000, most=2000) == CHUNK
