"""Bytes of tokens: joined, they are the text in UTF-8, also where a character is split over tokens."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from eft_engine.text.token_bytes import TokenBytes
from eft_engine.text.tokenizer import skipped_tokens
from tests.toy import make_tokenizer

TEXTS = ["a penguin", "süß", "日本 🐧", "one  two\n\tthree"]


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2's: spaces are U+2581, what no token holds is written byte by byte."""
    words = ["<unk>", "<s>", "▁", "a", "▁a", "p", "e", "n", "g", "u", "i", "s", "o", "t", "w", "h", "r"]
    vocab = {text: index for index, text in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


def metaspace() -> PreTrainedTokenizerFast:
    """As T5's."""
    backend = byte_fallback().backend_tokenizer
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


@pytest.mark.parametrize("tokenizer", [make_tokenizer(), byte_fallback()], ids=["byte level", "byte fallback"])
@pytest.mark.parametrize("text", TEXTS)
def test_joined_bytes_are_the_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    known = TokenBytes(tokenizer)
    found = [known.of(token_id, is_first=place == 0) for place, token_id in enumerate(token_ids)]
    assert b"".join(bytes(own or ()) for own in found) == text.encode()
    assert tokenizer.decode(token_ids) == text


def test_half_a_character_has_its_bytes_and_no_text() -> None:
    tokenizer = make_tokenizer()
    known = TokenBytes(tokenizer)
    first, second = tokenizer.encode("ü", add_special_tokens=False)
    assert (known.of(first), known.of(second)) == ((0xC3,), (0xBC,))
    assert known.text_of(first) == "\ufffd"


def test_space_is_a_part_of_a_token_but_for_the_first_one() -> None:
    for tokenizer in (byte_fallback(), metaspace()):
        known = TokenBytes(tokenizer)
        (token_id,) = tokenizer.convert_tokens_to_ids(["▁a"])
        assert (known.of(token_id), known.of(token_id, is_first=True)) == (tuple(b" a"), tuple(b"a"))
        assert known.text_of(token_id) == " a"


def test_control_token_has_a_text_and_no_bytes() -> None:
    tokenizer = make_tokenizer()
    known = TokenBytes(tokenizer)
    for token_id, text in skipped_tokens(tokenizer).items():
        assert (known.of(token_id), known.text_of(token_id)) == (None, text)
