"""Streamed pieces join to the decoded text, split no character, and leak no part of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from eft_engine.text.detokenizer import REPLACEMENT, IncrementalDetokenizer, StopStringFilter
from tests.toy import END_ID, make_tokenizer

TOKENIZER = make_tokenizer()


def streamed(tokenizer: PreTrainedTokenizerFast, token_ids: list[int]) -> tuple[list[str], str]:
    detokenizer = IncrementalDetokenizer(tokenizer)
    return [detokenizer.add([token_id]) for token_id in token_ids], detokenizer.flush()


@given(st.text())
def test_pieces_of_any_text_join_to_it(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    pieces, rest = streamed(TOKENIZER, ids)
    assert "".join(pieces) + rest == TOKENIZER.decode(ids, skip_special_tokens=True)
    if REPLACEMENT not in text:
        assert not any(piece.endswith(REPLACEMENT) for piece in pieces)


@given(st.lists(st.integers(0, 255), max_size=40))
def test_invalid_bytes_come_out_as_decoded(token_ids: list[int]) -> None:
    pieces, rest = streamed(TOKENIZER, token_ids)
    assert "".join(pieces) + rest == TOKENIZER.decode(token_ids, skip_special_tokens=True)


def test_characters_of_several_tokens_are_released_whole() -> None:
    pieces, rest = streamed(TOKENIZER, TOKENIZER.encode("a€😀", add_special_tokens=False))
    assert [piece for piece in pieces if piece] == ["a", "€", "😀"]
    assert rest == ""


def test_special_tokens_have_no_text() -> None:
    pieces, rest = streamed(TOKENIZER, [97, END_ID, 98])
    assert "".join(pieces) + rest == TOKENIZER.decode([97, 98])


def test_leading_spaces_of_sentencepiece_words_are_kept() -> None:
    vocab = {"▁the": 0, "▁sky": 1, "s": 2, "<unk>": 3}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    pieces, rest = streamed(tokenizer, [0, 1, 2, 0])
    assert pieces == ["the", " sky", "s", " the"]
    assert rest == ""


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_filter_equals_a_search_in_the_whole_text(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    stop_filter = StopStringFilter(stops)
    out, met = "", None
    for piece in pieces:
        released = stop_filter.add(piece)
        out += released.text
        if released.stop is not None:
            met = released.stop
            break
    else:
        out += stop_filter.flush()
    # The first piece that completes any stop string decides; inside it, the earliest one.
    prefix_ends = [*cuts, len(text)]
    seen = next((text[:end] for end in prefix_ends if any(stop in text[:end] for stop in stops)), None)
    if seen is None:
        assert (out, met) == (text, None)
    else:
        start = min(seen.index(stop) for stop in stops if stop in seen)
        assert out == seen[:start]
        assert met is not None
        assert seen[start:].startswith(met)


@pytest.mark.parametrize("stop", ["END", "E"])
def test_no_part_of_a_stop_string_is_released_early(stop: str) -> None:
    stop_filter = StopStringFilter([stop])
    released = [stop_filter.add(char) for char in "a " + stop]
    assert [piece.text for piece in released[:-1]] == ["a", " ", *[""] * (len(stop) - 1)]
    assert released[-1].stop == stop
