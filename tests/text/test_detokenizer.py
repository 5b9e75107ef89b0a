"""Streamed pieces join to the decoded text, split no character, and leak no part of a stop string."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from eft_engine.text.detokenizer import (
    MAX_HELD_TOKENS,
    MAX_UNFINISHED_TOKENS,
    REPLACEMENT,
    AnswerText,
    IncrementalDetokenizer,
    StopStringFilter,
)
from eft_engine.text.tokenizer import skipped_tokens
from tests.toy import END_ID, SPECIAL_TOKENS, make_tokenizer

TOKENIZER = make_tokenizer()
BYTE_IDS = [TOKENIZER.get_vocab()[char] for _, char in sorted(bytes_to_unicode().items())]

TEXTS = st.text() | st.text(st.sampled_from("a é€中国👍🏽👨‍👩‍👧🇩🇪e\u0301\u0308\u200d\u200b\ufeff\n"))
# Bytes that begin characters and bytes that continue them, in any order: mostly no text.
BROKEN_BYTES = st.lists(st.sampled_from(b"\x80\xbf\xad\xb8\xc3\xe4\xed\xa0\xf0\x9f\xff a"), max_size=60).map(bytes)


def sentencepiece_like(kind: str) -> PreTrainedTokenizerFast:
    """Words carry their leading space as ▁, which only the first word of a text loses; what is not a letter is bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"theskyi", "▁t", "▁th", "▁the", "▁s"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "s")]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = {
        "llama": lambda: decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
        "metaspace": lambda: decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    }[kind]()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


SENTENCEPIECE = {kind: sentencepiece_like(kind) for kind in ("llama", "metaspace")}


def streamed(tokenizer: PreTrainedTokenizerFast, blocks: Iterable[list[int]]) -> tuple[list[str], str]:
    """Pieces that the detokenizer releases block by block, and the rest."""
    detokenizer = IncrementalDetokenizer(tokenizer)
    return [detokenizer.add(block) for block in blocks], detokenizer.flush()


def one_by_one(token_ids: list[int]) -> list[list[int]]:
    return [[token_id] for token_id in token_ids]


def decoded(tokenizer: PreTrainedTokenizerFast, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=True))


@given(TEXTS, st.integers(1, 12))
@example("abcdefgh😀", 11)  # a block that ends inside a character
def test_pieces_of_any_text_join_to_it(text: str, block_len: int) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    blocks = [ids[start : start + block_len] for start in range(0, len(ids), block_len)]
    pieces, rest = streamed(TOKENIZER, blocks)
    assert "".join(pieces) + rest == decoded(TOKENIZER, ids) == text
    if REPLACEMENT not in text:
        assert not any(piece.endswith(REPLACEMENT) for piece in pieces)
        assert rest == ""


@given(BROKEN_BYTES | st.binary(max_size=60), st.integers(1, 12))
@example(b"\x80" * (MAX_HELD_TOKENS - 1) + "中".encode(), 1)  # a character that begins in the last token that is held
@example(b"\x80" * (MAX_HELD_TOKENS - MAX_UNFINISHED_TOKENS) + "😀".encode(), 1)
@example(b"\xf0\x9f" * 6 + "😀".encode(), 1)
def test_bytes_that_are_no_text_come_out_as_decoded(data: bytes, block_len: int) -> None:
    ids = [BYTE_IDS[byte] for byte in data]
    blocks = [ids[start : start + block_len] for start in range(0, len(ids), block_len)]
    pieces, rest = streamed(TOKENIZER, blocks)
    assert "".join(pieces) + rest == decoded(TOKENIZER, ids) == data.decode("utf-8", errors="replace")


def test_no_more_than_a_few_tokens_are_ever_held_back() -> None:
    pieces, rest = streamed(TOKENIZER, one_by_one([BYTE_IDS[0x80]] * 100))
    assert len(rest) <= MAX_HELD_TOKENS
    released = [len("".join(pieces[: count + 1])) for count in range(100)]
    assert all(count + 1 - out <= MAX_HELD_TOKENS for count, out in enumerate(released))
    assert len(pieces[MAX_HELD_TOKENS - 1]) == MAX_HELD_TOKENS - MAX_UNFINISHED_TOKENS


def test_characters_of_several_tokens_are_released_whole() -> None:
    pieces, rest = streamed(TOKENIZER, one_by_one(TOKENIZER.encode("a€e\u0301😀", add_special_tokens=False)))
    assert [piece for piece in pieces if piece] == ["a", "€", "e", "\u0301", "😀"]
    assert rest == ""


def test_unfinished_character_is_replaced_at_the_end() -> None:
    pieces, rest = streamed(TOKENIZER, one_by_one(TOKENIZER.encode("a😀", add_special_tokens=False)[:-1]))
    assert ("".join(pieces), rest) == ("a", REPLACEMENT)


@given(st.lists(st.integers(0, END_ID + len(SPECIAL_TOKENS) - 1), max_size=30))
def test_special_tokens_have_no_text(token_ids: list[int]) -> None:
    pieces, rest = streamed(TOKENIZER, one_by_one(token_ids))
    plain = [token_id for token_id in token_ids if token_id < END_ID]
    assert "".join(pieces) + rest == decoded(TOKENIZER, token_ids) == decoded(TOKENIZER, plain)


def test_special_token_between_the_bytes_of_a_character_does_not_break_it() -> None:
    first, *others = TOKENIZER.encode("é", add_special_tokens=False)
    assert streamed(TOKENIZER, [[first], [END_ID], others]) == (["", "", "é"], "")


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_leading_space_is_dropped_at_the_start_of_a_text_only(kind: str) -> None:
    tokenizer = SENTENCEPIECE[kind]
    vocab = tokenizer.get_vocab()
    ids = [vocab[piece] for piece in ("▁the", "▁s", "k", "y", "▁", "<0xE2>", "<0x82>", "<0xAC>", "▁the")]
    pieces, rest = streamed(tokenizer, one_by_one(ids))
    assert pieces == ["the", " s", "k", "y", " ", "", "", "€", " the"]
    assert rest == ""


@pytest.mark.parametrize("kind", SENTENCEPIECE)
@given(text=st.text(st.sampled_from("the sky€中😀 \n")), block_len=st.integers(1, 12))
def test_pieces_of_sentencepiece_tokenizers_join_to_the_text(kind: str, text: str, block_len: int) -> None:
    tokenizer = SENTENCEPIECE[kind]
    ids = tokenizer.encode(text, add_special_tokens=False)
    blocks = [ids[start : start + block_len] for start in range(0, len(ids), block_len)]
    pieces, rest = streamed(tokenizer, blocks)
    assert "".join(pieces) + rest == decoded(tokenizer, ids)
    assert not any(piece.endswith(REPLACEMENT) for piece in pieces)


def with_long_tokens(*tokens: bytes) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """A tokenizer with these tokens, which need not be whole characters, beside single bytes, and their ids."""
    letters = bytes_to_unicode()
    vocab = {letter: byte for byte, letter in letters.items()}
    ids = [vocab.setdefault("".join(letters[byte] for byte in token), len(vocab)) for token in tokens]
    backend = Tokenizer(models.BPE(vocab, []))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.add_tokens([AddedToken("<|flag|>", special=True)], special_tokens=True)
    tokenizer.add_tokens([AddedToken("<|user|>", special=True)], special_tokens=False)
    return tokenizer, ids


LONG_TOKENS = (b"END\xe2", b"\x82\xac", b"\x82\xacEND", b"\x82", b"\xacx\xf0\x9f", b"\x98\x80", b"a", b"\x80", b"\xf0")
LONG, LONG_IDS = with_long_tokens(*LONG_TOKENS)
CONTROLS = skipped_tokens(LONG)


@given(st.lists(st.sampled_from(LONG_IDS), max_size=40))
@example([LONG_IDS[0], *[LONG_IDS[7]] * 7, LONG_IDS[0], *[LONG_IDS[7]] * 12])
@example([LONG_IDS[7]] * 6 + [LONG_IDS[0]] + [LONG_IDS[7]] * 6)
def test_whole_characters_in_front_of_an_unfinished_one_are_released(token_ids: list[int]) -> None:
    detokenizer, released = IncrementalDetokenizer(LONG), ""
    for count, token_id in enumerate(token_ids, start=1):
        released += detokenizer.add([token_id])
        text = decoded(LONG, token_ids[:count])
        assert text.startswith(released)
        assert text.rstrip(REPLACEMENT) == released.rstrip(REPLACEMENT)
        assert len(text) - len(released) <= MAX_HELD_TOKENS + 4
    assert released + detokenizer.flush() == decoded(LONG, token_ids)


def test_character_that_a_token_begins_is_released_with_its_last_byte() -> None:
    assert streamed(LONG, one_by_one([*LONG_IDS[:1], *LONG_IDS[2:3], LONG_IDS[0]])) == (
        ["END", "€END", "END"],
        REPLACEMENT,
    )


def filtered(stops: list[str], pieces: Iterable[str]) -> tuple[str, str | None]:
    """All that a filter releases, and the stop string that ended it."""
    stop_filter, released = StopStringFilter(stops), ""
    for piece in pieces:
        out = stop_filter.add(piece)
        released += out.text
        if out.stop is not None:
            return released, out.stop
    return released + stop_filter.flush(), None


def searched(stops: list[str], text: str) -> tuple[str, str | None]:
    """The same by a search in the whole text: the stop string that is complete first, of these the longest."""
    found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    _, _, stop = min(found)
    return text[: text.find(stop)], stop


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=5), max_size=4), st.data())
@example("abab", ["baba", "abab"], None)
def test_stop_filter_equals_a_search_in_the_whole_text(text: str, stops: list[str], data: st.DataObject | None) -> None:
    places = st.lists(st.integers(0, len(text)), max_size=8)
    cuts = sorted(data.draw(places)) if data else list(range(len(text)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    released, met = filtered(stops, pieces)
    assert (released, met) == searched(stops, text)
    assert not any(stop in released for stop in stops)


@given(st.text("abx", max_size=30), st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3))
def test_nothing_that_belongs_to_the_stop_is_released_before_it_is_met(text: str, stops: list[str]) -> None:
    end, _ = searched(stops, text)
    stop_filter, released = StopStringFilter(stops), ""
    for char in text:
        out = stop_filter.add(char)
        released += out.text
        assert end.startswith(released)
        if out.stop is not None:
            break


@pytest.mark.parametrize("pieces", [["abcd"], ["ab", "cd"], list("abcd")], ids=str)
def test_stop_that_is_complete_first_is_met_whatever_the_pieces(pieces: list[str]) -> None:
    assert filtered(["abcd", "bc"], pieces) == ("a", "bc")


def test_longest_of_the_stops_that_end_together_is_met() -> None:
    assert filtered(["c", "bc", "abc"], ["xabc"]) == ("x", "abc")


@pytest.mark.parametrize("stop", ["END", "E", "\n\n", "👍🏽"])
def test_text_is_held_back_only_while_it_may_begin_a_stop(stop: str) -> None:
    stop_filter = StopStringFilter([stop])
    held = [stop_filter.add(char).text for char in "a" + stop[:-1]]
    assert held == ["a", *[""] * (len(stop) - 1)]
    assert stop_filter.add("x").text == stop[:-1] + "x"
    assert stop_filter.flush() == ""


def test_held_beginning_of_a_stop_is_text_once_nothing_more_comes() -> None:
    stop_filter = StopStringFilter(["END"])
    assert (stop_filter.add("the EN").text, stop_filter.flush(), stop_filter.flush()) == ("the ", "EN", "")


def written_out(stops: list[str], parts: list[tuple[str, bool]]) -> tuple[str, str | None]:
    """By a search in whole texts: stops with a control token in all of it, others in what is visible."""
    everything = "".join(text for text, _ in parts)
    places = [place for place, is_visible in enumerate(v for text, v in parts for _ in text) if is_visible]
    visible = "".join(everything[place] for place in places)
    found = []
    for stop in stops:
        if any(control in stop for control in CONTROLS.values()):
            start = everything.find(stop)
            found += (
                [(start + len(stop), -len(stop), sum(place < start for place in places), stop)] if start >= 0 else []
            )
        elif stop in visible:
            start = visible.find(stop)
            found.append((places[start + len(stop) - 1] + 1, -len(stop), start, stop))
    if not found:
        return visible, None
    _, _, count, stop = min(found)
    return visible[:count], stop


HIDDEN = st.sampled_from(sorted(CONTROLS.values()))
PARTS = st.lists(
    st.tuples(st.text("ab\n", min_size=1, max_size=4), st.just(True)) | st.tuples(HIDDEN, st.just(False)), max_size=12
)
CONTROL_STOPS = st.lists(
    st.text("ab\n", min_size=1, max_size=3)
    | st.tuples(st.text("ab\n", max_size=2), HIDDEN, st.text("ab\n", max_size=2)).map("".join)
    | st.tuples(HIDDEN, HIDDEN).map("".join),
    min_size=1,
    max_size=4,
)


@given(PARTS, CONTROL_STOPS)
@example([("a", True), ("<|end|>", False), ("b", True)], ["ab"])
@example([("a", True), ("<|end|>", False), ("b", True)], ["a<|end|>b", "b"])
@example([("ab", True), ("<|end|>", False), ("a", True)], ["b<|end|>b"])
def test_stops_with_control_tokens_equal_a_search_in_all_that_is_written(
    parts: list[tuple[str, bool]], stops: list[str]
) -> None:
    stop_filter, released, met = StopStringFilter(stops, controls=CONTROLS.values()), "", None
    end, _ = written_out(stops, parts)
    for text, is_visible in parts:
        out = stop_filter.add(text) if is_visible else stop_filter.add("", hidden=text)
        released, met = released + out.text, out.stop
        assert end.startswith(released)
        if met is not None:
            break
    else:
        released += stop_filter.flush()
    assert (released, met) == written_out(stops, parts)


def test_text_is_not_held_back_behind_a_control_token_of_no_stop() -> None:
    stop_filter = StopStringFilter(["<|end|>\n"], controls=CONTROLS.values())
    pieces = [stop_filter.add("a"), stop_filter.add("", hidden="<|user|>"), stop_filter.add("b")]
    assert [piece.text for piece in pieces] == ["a", "", "b"]
    assert [stop_filter.add("", hidden="<|end|>").text, stop_filter.add("b").text] == ["", "b"]
    assert stop_filter.flush() == ""


END, FLAG, USER = (LONG.get_vocab()[text] for text in ("<|end|>", "<|flag|>", "<|user|>"))


def answer(
    token_ids: list[int], *, stop: list[str], skip_special_tokens: bool = True, ends: bool = False
) -> tuple[list[str], str | None]:
    """Pieces of an answer, up to its stop; `ends`: the last token is an end of the text."""
    answer_text = AnswerText(LONG, stop=stop, skip_special_tokens=skip_special_tokens, skipped=CONTROLS)
    pieces: list[str] = []
    for count, token_id in enumerate(token_ids, start=1):
        is_last = count == len(token_ids)
        piece = answer_text.add(token_id, is_end=ends and is_last, is_last=is_last)
        pieces.append(piece.text)
        if piece.stop is not None:
            return pieces, piece.stop
    return pieces, None


def bytes_of(text: str) -> list[int]:
    return list(text.encode())


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("token", ["<|end|>", "<|flag|>", "<|user|>"])
def test_text_of_a_control_token_stops(token: str, skip: bool) -> None:
    token_ids = [*bytes_of("ab"), LONG.get_vocab()[token], *bytes_of("cd")]
    assert answer(token_ids, stop=[token], skip_special_tokens=skip) == (["a", "b", ""], token)
    assert answer(token_ids[:3], stop=[token], skip_special_tokens=skip, ends=True) == (["a", "b", ""], token)
    assert answer(token_ids, stop=[f"b{token}"], skip_special_tokens=skip) == (["a", "", ""], f"b{token}")
    assert answer(token_ids, stop=[f"{token}cd"], skip_special_tokens=skip) == (["a", "b", "", "", ""], f"{token}cd")
    other = "".join(answer(token_ids, stop=[f"{token}cc"], skip_special_tokens=skip)[0])
    assert other == LONG.decode(token_ids, skip_special_tokens=skip)


def test_ordinary_stops_read_over_control_tokens() -> None:
    assert answer([*bytes_of("xE"), FLAG, *bytes_of("ND")], stop=["END", "<|user|>"]) == (["x", "", "", "", ""], "END")


def test_text_of_a_control_token_that_is_spelled_stops_too() -> None:
    pieces, stop = answer(bytes_of("a<|end|>b"), stop=["<|end|>"])
    assert ("".join(pieces), stop) == ("a", "<|end|>")


def test_unfinished_character_in_front_of_a_control_token_comes_out_with_the_stop() -> None:
    begun = LONG_IDS[0]
    assert answer([begun, END, *bytes_of("a")], stop=["<|end|>"]) == (["END", REPLACEMENT], "<|end|>")
    assert answer([begun, END], stop=["<|end|>"], ends=True) == (["END", REPLACEMENT], "<|end|>")
    assert answer([begun, END, LONG_IDS[2]], stop=["D<|end|>"]) == (["EN", "D", "€END"], None)


def test_stop_in_a_token_that_ends_inside_a_character_is_met_with_it() -> None:
    assert answer([97, LONG_IDS[0], LONG_IDS[1]], stop=["END"]) == (["a", ""], "END")
    assert answer([97, LONG_IDS[0], LONG_IDS[1]], stop=["D€"]) == (["a", "EN", ""], "D€")


def test_flagged_tokens_without_a_name_do_not_take_the_space_behind_them() -> None:
    tokenizer = sentencepiece_like("llama")
    tokenizer.add_tokens([AddedToken("<|flag|>", special=True)], special_tokens=False)
    vocab = tokenizer.get_vocab()
    pieces, _ = streamed(tokenizer, one_by_one([vocab[piece] for piece in ("▁the", "<|flag|>", "▁the")]))
    assert pieces == ["the", "", " the"]
