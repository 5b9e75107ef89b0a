"""How answers of a file look from outside: how they begin and end, how long they are. A measure of the form where none is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.questions import Question

MOST = 0.7
"""Share of the answers that must have a beginning or an end in common for it to be of the form."""

LONGEST_EDGE = 40
LENGTH_SLACK = 1.5
"""Answers may be so many times longer than nearly all of the file, or shorter."""


@dataclass(frozen=True)
class Outline:
    """A scorer (`eft_engine.evaluation.scorers`): does an answer look like those of a file?

    `begins` and `ends` are what most answers have in common there ("": nothing), lengths are in characters.
    """

    begins: str
    ends: str
    shortest: int
    longest: int
    most_lines: int
    name: str = "outline"
    needs_whole: bool = True

    @classmethod
    def of(cls, answers: Sequence[str]) -> Outline:
        """The outline of training answers.

        Raises:
            InvalidOptionError: there are none.

        >>> outline = Outline.of([f'{{"answer": "{word}"}}' for word in ("yes", "no", "maybe", "a house", "27")])
        >>> outline.begins, outline.ends, outline.most_lines
        ('{"answer": "', '"}', 1)
        """
        texts = [answer.strip() for answer in answers if answer.strip()]
        if not texts:
            raise InvalidOptionError("there are no answers whose form could be described", option="chats", value=0)
        lengths = sorted(map(len, texts))
        low, high = lengths[len(lengths) // 20], lengths[-1 - len(lengths) // 20]
        lines = sorted(len(text.splitlines()) for text in texts)
        return cls(
            begins=_shared_beginning(texts),
            ends=_shared_beginning([text[::-1] for text in texts])[::-1],
            shortest=int(low / LENGTH_SLACK),
            longest=int(high * LENGTH_SLACK),
            most_lines=lines[-1 - len(lines) // 20],
        )

    def score(self, question: Question, answer: str) -> bool:
        """Whether an answer begins and ends so, and is about as long; the question is not looked at."""
        text = answer.strip()
        return (
            bool(text)
            and self.begins_so(text)
            and self.ends_so(text)
            and self.shortest <= len(text) <= self.longest
            and len(text.splitlines()) <= self.most_lines
        )

    def begins_so(self, answer: str) -> bool:
        """Whether it has the beginning that most have."""
        return answer.lstrip().startswith(self.begins)

    def ends_so(self, answer: str) -> bool:
        """Whether it has the end that most have."""
        return answer.rstrip().endswith(self.ends)

    def in_words(self) -> str:
        """What is looked at."""
        parts = [f"begins with {self.begins!r}"] if self.begins else []
        parts += [f"ends with {self.ends!r}"] if self.ends else []
        lines = "one line" if self.most_lines == 1 else f"at most {self.most_lines} lines"
        return ", ".join([*parts, f"{self.shortest} to {self.longest} characters", lines])


def _shared_beginning(texts: Sequence[str]) -> str:
    """The longest beginning that at least `MOST` of the texts have, and that no text is the whole of."""
    shared = ""
    while len(shared) < LONGEST_EDGE:
        following = Counter(
            text[: len(shared) + 1] for text in texts if text.startswith(shared) and len(text) > len(shared) + 1
        )
        best, count = following.most_common(1)[0] if following else ("", 0)
        if count < MOST * len(texts):
            break
        shared = best
    return shared
