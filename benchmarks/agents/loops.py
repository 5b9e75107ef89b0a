"""Whole conversations with agents: does the answer hold the fact, and how many calls did that take?"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.agents.calls import cell
from benchmarks.agents.engine import Listener, Trio, serving
from benchmarks.agents.frameworks import IN_PROCESS, SYSTEM, Limits, Model
from benchmarks.agents.judging import Verdict, has_facts, judge
from benchmarks.agents.tasks import Call, Task
from benchmarks.agents.tools import Desk
from eft_engine.evaluation.intervals import share_of

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Looped:
    """A task, what an agent made of it, and what the judge says. `texts` are raw, where they can be heard."""

    framework: str
    task: Task
    weight: float
    answer: str
    executed: list[Call]
    at_limit: bool
    error: str | None
    seconds: float
    texts: list[str]

    @property
    def verdict(self) -> Verdict:
        """The executed calls against those that the conversation takes."""
        allowed = [name for turn in self.task.turns for name in turn.allowed]
        return judge(self.executed, self.task.all_calls, allowed=allowed)

    @property
    def has_facts(self) -> bool:
        """Whether the last answer has what it must contain."""
        return has_facts(self.answer, self.task.last.facts)

    def as_json(self) -> dict[str, Any]:
        """The record of a line."""
        return {
            "part": "loops",
            "framework": self.framework,
            "weight": self.weight,
            "task": self.task.name,
            "kind": self.task.kind,
            "answer": self.answer,
            "facts": self.task.last.facts,
            "has_facts": self.has_facts,
            "executed": [asdict(call) for call in self.executed],
            "superfluous": [asdict(call) for call in self.verdict.superfluous],
            "at_limit": self.at_limit,
            "error": self.error,
            "raw": self.texts,
            "seconds": round(self.seconds, 2),
        }


def run_here(
    framework: str, model: Model, tasks: Iterable[Task], limits: Limits, *, listener: Listener | None = None
) -> Iterator[Looped]:
    """An agent in this process; its failures are results."""
    desk = Desk()
    for task in tasks:
        desk.clear()
        if listener is not None:
            listener.take()
        questions = [turn.question for turn in task.turns]
        answer, at_limit, error = "", False, None
        started = time.monotonic()
        try:
            answer, at_limit = IN_PROCESS[framework](model, desk, questions, limits)
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        seconds = time.monotonic() - started
        executed = [Call(*call) for call in desk.executed]
        texts = [] if listener is None else listener.take()
        yield Looped(framework, task, limits.weight, answer, executed, at_limit, error, seconds, texts)


def run_openai_agents(
    trio: Trio, python: Path, tasks: Iterable[Task], limits: Sequence[Limits], *, api: str
) -> Iterator[Looped]:
    """OpenAI's agents in another environment, against a server that is started for them."""
    tasks = list(tasks)
    with serving(trio) as url:
        for own in limits:
            with _client(python, {"base_url": url, "api": api, "system": SYSTEM, **asdict(own)}) as client:
                for task in tasks:
                    yield _ask_client(client, task, own.weight)


@contextlib.contextmanager
def _client(python: Path, settings: Mapping[str, Any]) -> Iterator[subprocess.Popen[str]]:
    client = subprocess.Popen(
        [str(python), "-m", "benchmarks.agents.openai_client"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "none"},
    )
    assert client.stdin is not None
    try:
        client.stdin.write(json.dumps(settings) + "\n")
        yield client
    finally:
        client.stdin.close()
        try:
            client.wait(30)
        except subprocess.TimeoutExpired:
            client.kill()


def _ask_client(client: subprocess.Popen[str], task: Task, weight: float) -> Looped:
    """Raises RuntimeError where the client is gone."""
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(json.dumps([turn.question for turn in task.turns]) + "\n")
    client.stdin.flush()
    line = client.stdout.readline()
    if not line:
        raise RuntimeError("the client with openai-agents ended; its error is above")
    told = json.loads(line)
    executed = [Call(*call) for call in told["executed"]]
    return Looped(
        "openai-agents", task, weight, told["answer"], executed, told["at_limit"], told["error"], told["seconds"], []
    )


def summary(outcomes: Sequence[Looped]) -> dict[str, Any]:
    """The figures of one framework at one weight."""
    return {
        "tasks": len(outcomes),
        "with_fact": share_of([own.has_facts for own in outcomes]),
        "all_calls_made": share_of([not own.verdict.missing for own in outcomes if own.task.all_calls]),
        "calls": sum(len(own.executed) for own in outcomes),
        "calls_wanted": sum(len(own.task.all_calls) for own in outcomes),
        "wrong_arguments": sum(len(own.verdict.wrong_arguments) for own in outcomes),
        "superfluous": sum(len(own.verdict.superfluous) for own in outcomes),
        "at_limit": sum(own.at_limit for own in outcomes),
        "errors": sum(own.error is not None for own in outcomes),
        "seconds_per_task": sum(own.seconds for own in outcomes) / max(len(outcomes), 1),
    }


def show(console: Console, summaries: Mapping[str, Mapping[str, Any]], limits: Limits) -> None:
    """A row per framework and weight; shares with 95 % intervals."""
    table = Table(title=f"conversations, greedy, {limits.max_steps} steps of {limits.max_tokens} tokens at most")
    headings = {
        "tasks": "tasks", "answer with the fact": "with_fact", "all calls made": "all_calls_made", "calls": "calls",
        "wanted": "calls_wanted", "wrong args": "wrong_arguments", "superfluous": "superfluous",
        "step limit": "at_limit", "errors": "errors", "s per task": "seconds_per_task",
    }  # fmt: skip
    table.add_column("agent", no_wrap=True)
    for heading in headings:
        table.add_column(
            heading, justify="right", no_wrap="%" in cell(next(iter(summaries.values()))[headings[heading]])
        )
    for name, own in summaries.items():
        table.add_row(name, *(cell(own[key]) for key in headings.values()))
    console.print(table)
