"""A document to pre-train on, and the parts of it that nobody could predict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Document:
    """Text, and two kinds of ranges of its characters.

    `unknown` carries no loss: what was made up for this document, where it is first said. `answers` carries more of it than the
    rest: the content of what is answered, a few tokens that everything else is read for.
    """

    text: str
    unknown: list[tuple[int, int]] = field(default_factory=list)
    answers: list[tuple[int, int]] = field(default_factory=list)

    def then(self, text: str, *, known: bool) -> Document:
        """With more text, which carries loss if it is `known`.

        >>> Document("a").then("bc", known=False)
        Document(text='abc', unknown=[(1, 3)], answers=[])
        """
        added = [] if known else [(len(self.text), len(self.text) + len(text))]
        return Document(self.text + text, self.unknown + added, self.answers)

    def wrapped(self, before: str, after: str) -> Document:
        """Between two strings that carry loss."""
        unknown, answers = (
            [(start + len(before), end + len(before)) for start, end in spans] for spans in (self.unknown, self.answers)
        )
        return Document(before + self.text + after, unknown, answers)


def first_mentions(text: str, names: Iterable[str]) -> list[tuple[int, int]]:
    """Where each of `names` is said first.

    >>> first_mentions("Bo met Al. Al left Bo.", ["Al", "Bo"])
    [(7, 9), (0, 2)]
    """
    found = [(text.find(name), len(name)) for name in dict.fromkeys(names)]
    return [(start, start + length) for start, length in found if start >= 0]
