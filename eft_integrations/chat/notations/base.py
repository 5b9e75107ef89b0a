"""What a notation of tool calls is: one way of writing calls, with its writing, its grammar and its reading side by side."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from eft_integrations.chat.forms import WrittenCall
from eft_integrations.chat.lark import Rules
from eft_integrations.chat.messages import Tool, ToolCall

NAME = r"[\w.\-]+"
"""Names of functions, as a regular expression."""


@dataclass(frozen=True)
class BrokenCall:
    """Text that began as a call and is none. `begun` is what is known of the call: its name, and its arguments as far as they are
    written.
    """

    text: str
    reason: str
    begun: WrittenCall | None = None


@dataclass(frozen=True)
class Zone:
    """What a text that begins with a marker holds so far: calls that are over, the one that is being written (None before its
    name is known), a thought as far as it is certain (None: it is none), and where ordinary text goes on (None: not yet).
    """

    calls: tuple[WrittenCall | BrokenCall, ...] = ()
    partial: WrittenCall | None = None
    end: int | None = None
    thought: str | None = None


class Notation(ABC):
    """One way in which models write calls."""

    name: str
    """What users call it."""
    markers: tuple[str, ...]
    """Texts with which a call begins wherever they stand."""
    is_bare: bool = False
    """No marker must be there: a call is the answer as a whole."""
    is_shared: bool = True
    """Calls may also be demanded in the forms that models share (bare JSON, a fence, tags)."""
    has_headers: bool = False
    """Every answer is written in the notation, also one without calls."""
    thought: tuple[str, str] | None = None
    """The texts around a thought that the notation writes in a form of its own."""

    @abstractmethod
    def write(self, calls: Sequence[ToolCall]) -> str:
        """The text of an assistant's turn that makes these calls, without what ends the turn."""

    @abstractmethod
    def rule(self, tools: Sequence[Tool], rules: Rules, *, several: bool, behind: str = "") -> str:
        """A Lark expression of one call (or of several), whose further rules are added to `rules`; `behind`: the marker that
        stands there already.
        """

    @abstractmethod
    def read(self, text: str, tools: Sequence[Tool], *, is_over: bool) -> Zone:
        """What a text says that begins with one of the markers; `is_over`: nothing follows it."""

    def answer_rule(self, rules: Rules, body: str) -> str:
        """A Lark expression of an answer without calls, which says `body`."""
        return body

    def opening_texts(self, tools: Sequence[Tool]) -> Sequence[str]:
        """Texts that an answer holds only if it calls one of the tools."""
        return self.markers

    def openings(self, tools: Sequence[Tool], rules: Rules, *, several: bool) -> list[tuple[str, str]]:
        """Where no marker must be there: for each tool a regular expression of what only its calls begin with, and the Lark
        expression of the rest.
        """
        raise NotImplementedError(f"{self.name} has markers")

    def example(self) -> str:
        """A call with placeholders, for models whose template announces no tools."""
        return self.write([ToolCall("", "<name>", "<arguments>")])

    def written_with(self) -> str:
        """Every literal that a call is written with: control tokens among them have to be kept in the text."""
        return f"{self.example()} {' '.join(self.markers)}"


# ---- helpers of notations ------------------------------------------------------------------------------------------------


def tolerant(literal: str) -> str:
    """A regular expression of a literal in which any whitespace will do, none too.

    >>> re.fullmatch(tolerant("<a> b"), "<a>b") is not None
    True
    """
    return r"\s*".join(re.escape(part) for part in literal.split())


def skip(text: str, start: int, *literals: str) -> int:
    """The position behind whitespace and whichever of the literals come, in this order."""
    for literal in literals:
        found = re.compile(r"\s*" + tolerant(literal)).match(text, start)
        start = found.end() if found and literal.strip() else start
    return start


def may_begin(text: str, literal: str) -> bool:
    """Whether a text that is not over may become this literal.

    >>> may_begin("</tool", "</tool_call>"), may_begin("", "x"), may_begin("</b", "</tool_call>")
    (True, True, False)
    """
    stripped, wanted = text.strip(), literal.strip()
    return len(stripped) < len(wanted) and wanted.startswith(stripped)


def overlap(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`.

    >>> overlap("see <tool", "<tool_call>"), overlap("see", "<tool_call>")
    (5, 0)
    """
    return next(
        (length for length in range(min(len(text), len(marker) - 1), -1, -1) if text.endswith(marker[:length])), 0
    )
