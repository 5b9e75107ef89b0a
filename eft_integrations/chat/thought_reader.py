"""How a thought is told from the answer behind it while the text comes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from eft_integrations.chat.notations.base import overlap
from eft_integrations.chat.thoughts import Thoughts


@dataclass(frozen=True)
class Thought:
    """A piece of a thought."""

    text: str


class ThoughtReader:
    """Takes the text of one answer and gives pieces of its thought, then everything behind it. A thought is the beginning of an
    answer or none: tags further on are text. `num_characters` are those between the tags so far.
    """

    def __init__(self, thoughts: Thoughts) -> None:
        self._tags = thoughts.tags
        self._opening = thoughts.tags.opening.strip()
        self._is_before = thoughts.state != "open"
        self._is_inside = True
        self._is_thought = thoughts.state == "open"
        self._held = ""
        self._has_opening = False
        self._is_blank = True
        self._mark: str | None = None
        self._closes_with: str | None = None
        self.num_characters = 0

    @property
    def is_thinking(self) -> bool:
        """Whether a thought has begun that is not over."""
        return self._is_inside and self._is_thought

    def feed(self, text: str) -> Iterator[Thought | str]:
        """Take a piece of the model's text."""
        self._held += text
        yield from self._advance(is_over=False)

    def finish(self) -> Iterator[Thought | str]:
        """The text is over."""
        yield from self._advance(is_over=True)

    def _advance(self, *, is_over: bool) -> Iterator[Thought | str]:
        if self._is_before:
            stripped = self._held.lstrip()
            if not is_over and len(stripped) < len(self._opening) and self._opening.startswith(stripped):
                return
            self._is_before = False
            self._is_thought = self._is_inside = stripped.startswith(self._opening)
        if self._is_inside:
            yield from self._inside(is_over=is_over)
        if not self._is_inside:
            yield from self._behind(is_over=is_over)

    def _inside(self, *, is_over: bool) -> Iterator[Thought]:
        """The thought without whitespace around it, and without an opening tag that the prompt may have written already."""
        if self._is_blank and not self._has_opening:
            stripped = self._held.lstrip()
            if not is_over and len(stripped) < len(self._opening) and self._opening.startswith(stripped):
                return
            self._has_opening = True
            if stripped.startswith(self._opening):
                self._held = stripped.removeprefix(self._opening)
        if self._is_blank:
            self._drop(len(self._held) - len(self._held.lstrip()))
        place = self._held.find(self._tags.closing)
        end = place if place >= 0 else len(self._held)
        if place < 0 and not is_over:
            end -= overlap(self._held, self._tags.closing)
        ready = self._held[:end].rstrip()
        if ready:
            self._is_blank = False
            yield Thought(ready)
        self._drop(len(ready))
        if place >= 0:
            self._is_inside = False
            self._drop(len(self._held) - len(self._held.lstrip()))
            self._held = self._held.removeprefix(self._tags.closing)
            self._mark, self._closes_with = self._tags.said or ("", None)

    def _drop(self, count: int) -> None:
        self._held = self._held[count:]
        self.num_characters += count

    def _behind(self, *, is_over: bool) -> Iterator[str]:
        """What is said: without whitespace and a mark of its own in front of it, and what closes that."""
        if self._mark is not None:
            self._held = self._held.lstrip()
            if not is_over and len(self._held) < max(len(self._mark), 1) and self._mark.startswith(self._held):
                return
            if not self._held.startswith(self._mark):
                self._closes_with = None
            elif self._mark:
                self._mark, self._held = "", self._held.removeprefix(self._mark)
                yield from self._behind(is_over=is_over)
                return
            self._mark = None
        end = len(self._held)
        if self._closes_with is not None and is_over:
            self._held = re.sub(rf"\s*{re.escape(self._closes_with)}\s*\Z", "", self._held)
            end = len(self._held)
        elif self._closes_with is not None:
            place = self._held.find(self._closes_with)
            end = place if place >= 0 else end - overlap(self._held, self._closes_with)
            end = len(self._held[:end].rstrip())
        ready, self._held = self._held[:end], self._held[end:]
        if ready:
            yield ready
