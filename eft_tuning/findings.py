"""What checks of a chat file have found, with the lines that it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from eft_engine.errors import InvalidOptionError

LINES_TOLD = 8
"""Lines that one message names; of further ones the number."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found. `lines` are those of the file (of the held-out file, where `kind` begins with `held_out`)."""

    kind: str
    message: str
    lines: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.message


@dataclass
class Findings:
    """All that was found. Rows of `too_long` lines do not fit into `max_length` and are to be left out.

    `num_tokens` and `num_answer_tokens` count the training rows that fit.
    """

    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)
    held_out_too_long: list[int] = field(default_factory=list)
    num_tokens: int = 0
    num_answer_tokens: int = 0
    longest: int = 0

    def raise_errors(self, file: object) -> None:
        """Raises InvalidOptionError with all errors in one message, if there are any."""
        if self.errors:
            raise InvalidOptionError(
                f"{file} cannot be trained on:\n  " + "\n  ".join(map(str, self.errors)),
                option="chats",
                value=str(file),
            )


def at_lines(lines: Sequence[int]) -> str:
    """Lines in words.

    >>> at_lines([3]), at_lines([1, 2, 5]), at_lines(range(1, 12))
    ('line 3', 'lines 1, 2 and 5', 'lines 1, 2, 3, 4, 5, 6, 7, 8 and 3 more')
    """
    told = [str(line) for line in lines[:LINES_TOLD]]
    if len(lines) == 1:
        return f"line {told[0]}"
    if len(lines) > LINES_TOLD:
        return f"lines {', '.join(told)} and {len(lines) - LINES_TOLD} more"
    return f"lines {', '.join(told[:-1])} and {told[-1]}"
