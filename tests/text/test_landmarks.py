"""Callers write grammars: what is looked for in their text is found in a time that grows with its length, not with its square."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from eft_engine.config import Grammar, JsonSchema, Lark, Regex
from eft_engine.text.landmarks import Landmarks
from eft_engine.text.spelling import Alphabet

HOSTILE: dict[str, Callable[[int], Grammar]] = {
    "quotes": lambda size: Lark(grammar='start: "' + '\\"' * size),
    "strokes": lambda size: Lark(grammar="start: /" + "\\/" * size),
    "numbers": lambda size: Lark(grammar="start: " + "<[" * size),
    "classes": lambda size: Regex(pattern="[" * size),
    "backslashes": lambda size: Regex(pattern="\\" * size + "1"),
    "backslashes of a schema": lambda size: JsonSchema(json_schema={"pattern": "\\" * size + "1"}),
}


class NoSpecial(Alphabet):
    """An alphabet without special tokens."""

    def __init__(self) -> None:
        self.special_ids = frozenset()


def seconds(grammar: Grammar) -> float:
    """Of this thread, the least of three times."""
    found = []
    for _ in range(3):
        start = time.thread_time()
        Landmarks.of(grammar, NoSpecial())
        found.append(time.thread_time() - start)
    return min(found)


@pytest.mark.parametrize("name", HOSTILE)
def test_time_grows_with_the_length(name: str) -> None:
    small, large = seconds(HOSTILE[name](2_000)), seconds(HOSTILE[name](16_000))
    assert large < 32 * small + 0.01, f"8 times as long a text takes {large / small:.0f} times as long"


def test_words_are_those_of_what_is_closed() -> None:
    grammar = Lark(
        grammar='start: "one" /two/ "\\"three" // "four\nother: %json {"pattern": "five"} /"pattern": "\\d"/ "six'
    )
    words = [bytes(own).decode() for own in Landmarks.of(grammar, NoSpecial()).words]
    assert words == ["one", "two", "three", "five"]
