"""One request per task with tools bound: what the model writes, what is recognised of it, and whether it is right."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import StructuredTool
from rich.console import Console
from rich.table import Table

from benchmarks.agents.engine import Listener
from benchmarks.agents.frameworks import SYSTEM
from benchmarks.agents.judging import Verdict, Written, has_facts, judge, num_common, written_calls
from benchmarks.agents.tasks import KINDS, Call, Step, Task
from benchmarks.agents.tools import TOOLS
from eft_engine.evaluation.intervals import Share, share_of
from eft_integrations.chat.messages import LOOSE
from eft_integrations.langchain import EFTChatModel


@dataclass(frozen=True)
class Asked:
    """A task, its one answer and what the judge says of it."""

    task: Task
    weight: float
    choice: str
    raw: str
    written: Written
    recognised: list[Call]
    verdict: Verdict
    seconds: float

    @property
    def num_common(self) -> int:
        """Calls that are written, and recognised."""
        return num_common(self.recognised, self.written.all)

    @property
    def right_tools(self) -> bool:
        """Whether the tools are the ones wanted, whatever the arguments."""
        return not self.verdict.superfluous and bool(self.verdict.right or self.verdict.wrong_arguments)

    @property
    def is_failure(self) -> bool:
        """Worth to be read."""
        return not self.verdict.complete or self.num_common < len(self.written.all) or self.written.num_broken > 0

    def as_json(self) -> dict[str, Any]:
        """The record of a line."""
        return {
            "part": "calls",
            "weight": self.weight,
            "choice": self.choice,
            "task": self.task.name,
            "kind": self.task.kind,
            "raw": self.raw,
            "written": asdict(self.written),
            "recognised": [asdict(call) for call in self.recognised],
            "wanted": [asdict(call) for call in self.task.next_calls],
            "complete": self.verdict.complete,
            "superfluous": [asdict(call) for call in self.verdict.superfluous],
            "seconds": round(self.seconds, 2),
        }


def ask(listener: Listener, tasks: Iterable[Task], *, weight: float, choice: str, max_tokens: int) -> Iterator[Asked]:
    """Ask for one answer per task.

    Raises:
        RuntimeError: the texts pass by the listener.
    """
    tools = [StructuredTool.from_function(function, parse_docstring=True) for function in TOOLS.values()]
    llm = EFTChatModel(engine=listener, reward_weights=weight, temperature=0.0, max_tokens=max_tokens)
    bound = llm.bind_tools(tools, tool_choice=choice)
    for task in tasks:
        listener.take()
        started = time.monotonic()
        message = bound.invoke(conversation(task))
        seconds = time.monotonic() - started
        raw = "".join(listener.take())
        if not raw and (message.content or message.tool_calls):
            raise RuntimeError("the model answers, but not through Engine.stream: raw texts cannot be heard")
        yield read(task, message, raw, weight=weight, choice=choice, seconds=seconds)


def read(task: Task, message: AIMessage, raw: str, *, weight: float, choice: str, seconds: float) -> Asked:
    """What the judge says of an answer."""
    written = written_calls(raw)
    recognised = [Call(call["name"], call["args"]) for call in message.tool_calls]
    verdict = judge(recognised, task.next_calls)
    return Asked(task, weight, choice, raw, written, recognised, verdict, seconds)


def conversation(task: Task) -> list[BaseMessage]:
    """The messages of a task until its one request: earlier turns are over, and so are the steps that are given."""
    messages: list[BaseMessage] = [SystemMessage(SYSTEM)]
    for turn in task.turns[:-1]:
        messages += [HumanMessage(turn.question), *_done(turn.steps), AIMessage(turn.answer)]
    return [*messages, HumanMessage(task.last.question), *_done(task.last.steps[: task.given])]


def _done(steps: Sequence[Step]) -> Iterator[BaseMessage]:
    for number, step in enumerate(steps):
        ids = [f"{LOOSE}{number}_{index}" for index in range(len(step))]  # as this model's own calls are recognised
        calls = [{"name": call.name, "args": call.arguments, "id": own} for call, own in zip(step, ids, strict=True)]
        yield AIMessage("", tool_calls=calls)
        for call, own in zip(step, ids, strict=True):
            yield ToolMessage(call.result(), tool_call_id=own, name=call.name)


def summary(answers: Sequence[Asked]) -> dict[str, Any]:
    """The figures of one weight and one choice."""
    wanting = [own for own in answers if own.task.next_calls]
    resting = [own for own in answers if not own.task.next_calls]
    num_usual = sum(len(own.written.calls) for own in answers)
    num_odd = sum(len(own.written.odd) for own in answers)
    return {
        "requests": len(answers),
        "recognised": Share(sum(num_common(own.recognised, own.written.calls) for own in answers), num_usual),
        "recognised_odd": Share(sum(num_common(own.recognised, own.written.odd) for own in answers), num_odd),
        "recognised_only": sum(len(own.recognised) - own.num_common for own in answers),
        "broken": sum(own.written.num_broken for own in answers),
        "right_tools": share_of([own.right_tools for own in wanting]),
        "nothing_wrong": share_of([own.verdict.nothing_wrong for own in wanting]),
        "complete": share_of([own.verdict.complete for own in wanting]),
        "text_where_text": share_of([not own.recognised for own in resting]),
        "facts_in_text": share_of([has_facts(own.raw, own.task.last.facts) for own in resting]),
        "superfluous": sum(len(own.verdict.superfluous) for own in answers),
        "with_superfluous": sum(bool(own.verdict.superfluous) for own in answers),
        "complete_by_kind": {
            kind: share_of([own.verdict.complete for own in answers if own.task.kind == kind])
            for kind in KINDS
            if any(own.task.kind == kind for own in answers)
        },
        "seconds_per_request": sum(own.seconds for own in answers) / max(len(answers), 1),
    }


def cell(value: Any) -> str:
    """A figure in a table; shares with their 95 % intervals.

    >>> cell(Share(4, 5)), cell(Share(0, 0)), cell(2.04)
    ('4/5: 80 % [38, 96]', '-', '2.0')
    """
    if isinstance(value, Share):
        low, high = (round(100 * bound) for bound in value.interval)
        return (
            f"{value.hits}/{value.total}: {value.value:.0%} [{low}, {high}]".replace("%", " %") if value.total else "-"
        )
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def show(console: Console, summaries: dict[str, dict[str, Any]], *, max_tokens: int) -> None:
    """Both tables: shares with 95 % intervals, and complete answers by kind of task."""
    rows = {
        "requests": "requests",
        "calls written that are recognised": "recognised",
        "the same, with odd keys (function, tool)": "recognised_odd",
        "recognised, not written": "recognised_only",
        "calls named that are no JSON": "broken",
        "calls wanted: right tools": "right_tools",
        "calls wanted: tools and arguments right": "nothing_wrong",
        "calls wanted: all of them in this answer": "complete",
        "text wanted: text": "text_where_text",
        "text wanted: with the fact": "facts_in_text",
        "superfluous calls": "superfluous",
        "answers with superfluous calls": "with_superfluous",
        "seconds per request": "seconds_per_request",
    }
    table = Table(title=f"one request per task, greedy, {max_tokens} tokens at most")
    table.add_column("")
    for heading in summaries:
        table.add_column(heading, justify="right")
    for heading, key in rows.items():
        table.add_row(heading, *(cell(own[key]) for own in summaries.values()))
    for kind in KINDS:
        shares = [own["complete_by_kind"].get(kind) for own in summaries.values()]
        if any(shares):
            table.add_row(f"complete: {kind}", *(f"{own.hits} of {own.total}" if own else "-" for own in shares))
    console.print(table)
