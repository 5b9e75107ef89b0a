"""Whether a text is a call, found out while it is written (see `CallDecision`)."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Literal

from eft_engine.config import CallDecision
from eft_engine.engine.steering import Bytes

Verdict = Literal["call", "words"]


@dataclass(frozen=True)
class _Text:
    """A text so far: a thought that may come first, and what stands behind it."""

    decision: CallDecision
    is_thinking: bool
    may_think: bool
    start: int = 0
    """Tokens before what is judged."""
    num_tokens: int = 0
    seen: bytes = b""
    """Of the thought, what may be part of a marker; behind it everything."""

    def after(self, written: bytes) -> _Text:
        thought, seen, number = self.decision.thought, self.seen + written, self.num_tokens + 1
        if self.is_thinking:
            assert thought is not None, "it thinks in tags"
            closing = thought.closing.encode()
            if closing in seen:
                return replace(
                    self, is_thinking=False, start=number, num_tokens=number, seen=seen.partition(closing)[2]
                )
            return replace(self, num_tokens=number, seen=seen[-len(closing) :])
        if self.may_think and thought is not None:
            opening, begun = thought.opening.encode(), seen.lstrip()
            if begun.startswith(opening):
                inside = replace(self, is_thinking=True, may_think=False, seen=b"")
                return inside.after(begun[len(opening) :])
            if not opening.startswith(begun):
                return replace(self, may_think=False, num_tokens=number, seen=seen)
        return replace(self, num_tokens=number, seen=seen)

    @property
    def has_opening(self) -> bool:
        return not self.is_thinking and any(opening.encode() in self.seen for opening in self.decision.openings)

    @property
    def is_due(self) -> bool:
        return not self.is_thinking and self.num_tokens - self.start >= self.decision.num_tokens


class Deciding:
    """Follows one text until it is decided.

    Args:
        decision: what is asked.
        bytes_of: what a token stands for.
    """

    def __init__(self, decision: CallDecision, bytes_of: Bytes) -> None:
        thought = decision.thought
        is_open = thought is not None and thought.is_open
        self._text = _Text(decision, is_thinking=is_open, may_think=thought is not None and not is_open)
        self._bytes_of = bytes_of
        self.verdict: Verdict | None = None

    @property
    def is_thinking(self) -> bool:
        """Whether a thought has begun that is not over: it is told at once."""
        return self._text.is_thinking

    @property
    def start(self) -> int:
        """Tokens of the thought: what is drawn anew begins behind them."""
        return self._text.start

    def commit(self, token_id: int, *, is_last: bool) -> Verdict | None:
        """A token was written; `is_last`: none comes behind it. The verdict where it falls with this token."""
        if self.verdict is not None:
            return None
        self._text = self._text.after(self._bytes_of(token_id))
        if self._text.has_opening:
            self.verdict = "call"
        elif is_last and self._text.is_thinking:
            self.verdict = "call"  # the thought is all there is, and stays
        elif is_last or self._text.is_due:
            self.verdict = "words"
        return self.verdict

    def decides(self, lookahead: Seq[int]) -> list[bool]:
        """At the next position, and behind each token of the lookahead: whether the deciding weights hold there."""
        if self.verdict is not None:
            return [self.verdict == "call"] * (len(lookahead) + 1)
        text = self._text
        found = [not text.is_thinking]
        for token_id in lookahead:
            text = text.after(self._bytes_of(token_id))
            found.append(not text.is_thinking)
        return found
