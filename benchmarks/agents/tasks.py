"""What a task is: what users say, which calls that takes, and what the answer must contain. `task_list.py` has the tasks.

A turn's calls come in steps; calls of one step do not depend on each other, and a later step needs the results of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.agents.tools import run_tool

Kind = Literal["single", "parallel", "chained", "follow_up", "none", "answered"]
KINDS: tuple[Kind, ...] = ("single", "parallel", "chained", "follow_up", "none", "answered")
Fact = str | float
"""A text (or several, separated by |, of which one is enough) or a number that the answer must contain."""


@dataclass(frozen=True)
class Call:
    """A call of a tool."""

    name: str
    arguments: dict[str, Any]

    def result(self) -> str:
        """What the tool answers."""
        return run_tool(self.name, self.arguments)


Step = tuple[Call, ...]


@dataclass(frozen=True)
class Turn:
    """One thing that the user says, the calls that it takes and what the answer must contain.

    Calls of the tools in `allowed` may come or not. `answer` is what the assistant is made to have said in earlier turns.
    """

    question: str
    steps: tuple[Step, ...]
    facts: tuple[Fact, ...]
    allowed: tuple[str, ...] = ()
    answer: str = ""


@dataclass(frozen=True)
class Task:
    """A conversation. Where one request is asked, all turns but the last are over, and `given` steps of the last one are."""

    name: str
    kind: Kind
    turns: tuple[Turn, ...]
    given: int = 0

    @property
    def last(self) -> Turn:
        """What the user says last."""
        return self.turns[-1]

    @property
    def next_calls(self) -> Step:
        """The calls that one request must give; none: the answer is text."""
        return self.last.steps[self.given] if self.given < len(self.last.steps) else ()

    @property
    def all_calls(self) -> list[Call]:
        """The calls of the whole conversation."""
        return [call for turn in self.turns for step in turn.steps for call in step]
