"""Where in a text a position is: however it is cut into tokens, and as those see it who read the whole text."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eft_engine.text.places import BehindMarker, BetweenMarkers, InsideJsonString, Place

PLACES: list[Place] = [
    BehindMarker(b"aab"),
    BehindMarker(b"a"),
    BetweenMarkers(b"<a>", b"</a>"),
    BetweenMarkers(b"aa", b"aab", is_inside=True),
    BetweenMarkers(b"a", b"a"),
    InsideJsonString(),
    InsideJsonString(keys=True),
]
TEXTS = st.text(alphabet='ab<>/{}[]":,\\é ', max_size=40).map(str.encode)
CUTS = st.lists(st.integers(0, 60), max_size=12)


def pieces(text: bytes, cuts: list[int]) -> list[bytes]:
    """A text as tokens; some of them are empty, and some end inside a character."""
    return [text[start:stop] for start, stop in pairwise([0, *sorted(min(cut, len(text)) for cut in cuts), len(text)])]


def after(place: Place, tokens: list[bytes]) -> Place:
    for token in tokens:
        place = place.after(token)
    return place


@pytest.mark.parametrize("place", PLACES, ids=repr)
@given(TEXTS, CUTS)
def test_how_a_text_is_cut_into_tokens_makes_no_difference(place: Place, text: bytes, cuts: list[int]) -> None:
    whole = place.after(text)
    assert after(place, pieces(text, cuts)) == whole
    assert after(place, [bytes([byte]) for byte in text]) == whole
    assert place.after(b"") == place


@pytest.mark.parametrize("place", PLACES, ids=repr)
@given(TEXTS, TEXTS)
def test_a_state_stays_what_it_was(place: Place, text: bytes, tried: bytes) -> None:
    here = place.after(text)
    before = repr(here)
    here.after(tried)
    assert repr(here) == before
    assert hash(here) == hash(place.after(text))


# ---- markers -----------------------------------------------------------------------------------------------------------


@given(st.sampled_from([b"a", b"ab", b"aab", b"aba"]), TEXTS)
def test_behind_a_marker_is_behind_its_first_end(marker: bytes, text: bytes) -> None:
    for length in range(len(text) + 1):
        assert BehindMarker(marker).after(text[:length]).is_inside == (marker in text[:length])


def slow_between(text: bytes, opening: bytes, closing: bytes, *, inside: bool) -> bool:
    """By looking for the next marker again and again from where the last one ended."""
    start = 0
    while (found := text.find(closing if inside else opening, start)) >= 0:
        start = found + len(closing if inside else opening)
        inside = not inside
    return inside


@given(st.sampled_from([(b"<", b">"), (b"ab", b"ba"), (b"aa", b"aab"), (b"a", b"a")]), TEXTS, st.booleans())
def test_between_markers_is_behind_an_opening_and_not_yet_a_closing(
    markers: tuple[bytes, bytes], text: bytes, inside: bool
) -> None:
    opening, closing = markers
    for length in range(len(text) + 1):
        place = BetweenMarkers(opening, closing, inside).after(text[:length])
        assert place.is_inside == slow_between(text[:length], opening, closing, inside=inside)


def test_a_marker_may_be_split_over_many_tokens_and_share_them_with_others() -> None:
    tokens = [b"I <th", b"in", b"k", b">so</t", b"hink>", b"x"]
    place = BetweenMarkers(b"<think>", b"</think>")
    found = []
    for token in tokens:
        place = place.after(token)
        found.append(place.is_inside)
    assert found == [False, False, False, True, False, False]


# ---- strings of JSON ---------------------------------------------------------------------------------------------------


def spans(value: Any, start: int, text: str) -> tuple[int, list[tuple[int, int, bool]]]:
    """Where the text of a value, as `json.dumps` writes it from `start` on, ends, and its strings: from behind the opening quote to
    the closing one, with whether it is a name.
    """
    found: list[tuple[int, int, bool]] = []

    def string(at: int, own: str, *, is_key: bool) -> int:
        written = json.dumps(own, ensure_ascii=False)
        assert text[at:].startswith(written), "the judge has lost its way"
        found.append((at + 1, at + len(written) - 1, is_key))
        return at + len(written)

    def walk(at: int, own: Any) -> int:
        match own:
            case str():
                return string(at, own, is_key=False)
            case dict() | list():
                at += 1
                for index, item in enumerate(own):
                    at += len(", ") if index else 0
                    if isinstance(own, dict):
                        at = string(at, item, is_key=True) + len(": ")
                        item = own[item]
                    at = walk(at, item)
                return at + 1
        return at + len(json.dumps(own))

    return walk(start, value), found


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.text(alphabet='aé"\\{}[]:,\n', max_size=5))
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(alphabet='k"\\:,{', max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
).filter(lambda value: isinstance(value, dict | list))


@given(DOCUMENTS, st.sampled_from(["", "Here it is: ", 'She said "a". ']), st.booleans())
def test_strings_are_those_that_json_reads(document: Any, words: str, keys: bool) -> None:
    text = words + json.dumps(document, ensure_ascii=False)
    assert json.loads(text[len(words) :]) == document
    _, strings = spans(document, len(words), text)
    inside = {position for start, stop, is_key in strings for position in range(start, stop + 1) if keys or not is_key}
    place = InsideJsonString(keys)
    for position, character in enumerate(text):
        assert place.is_inside == (position in inside), text[:position]
        place = place.after(character.encode())
    assert not place.is_inside


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ('"a', False),  # no JSON has begun
        ('say "hi" to {"a": "', True),
        ('{"a": "x\\"', True),  # an escaped quote ends nothing
        ('{"a": "x\\\\"', False),
        ('{"a": "x"} and "', False),  # behind JSON
        ('{"a": "x"} {"b": "', True),  # and another one
        ('{"a": ["', True),
        ('{"a": [{"', False),
        ('{"a": [1, "', True),
        ('{"a": [1], "', False),
        ('{"a": {"b": 1}, "', False),
        ('[{"a": 1}, "', True),
    ],
)
def test_values_and_names(text: str, inside: bool) -> None:
    assert InsideJsonString().after(text.encode()).is_inside is inside
