"""Whose decision is a call? The base alone, the pair at its weight, and the pair with `call_weight=0`, on the same requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.tools import StructuredTool
from rich.console import Console
from rich.table import Table

from benchmarks.agents.calls import cell, conversation
from benchmarks.agents.frameworks import SYSTEM
from benchmarks.agents.judging import has_facts
from benchmarks.agents.tasks import Call, Task
from benchmarks.agents.tools import TOOLS
from eft_engine import PromptPair
from eft_engine.evaluation.intervals import share_of
from eft_engine.zoo.smollm2_json import parse_json_answer
from eft_integrations.langchain import EFTChatModel

FORM = 'Whatever you say to the user, say it as one line of JSON, {"answer": "...", "topic": "..."}, with the topic in one word.'
"""What a prompt pair asks of the small model, where no adapter has taught it."""


@dataclass(frozen=True)
class Setting:
    """Weights of an answer, and of whether it calls; None: the same. `by_prompt`: the pair is a prompt of the small model."""

    weight: float
    call_weight: float | None = None
    by_prompt: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        own = f"weight {self.weight:g}"
        return own if self.call_weight is None else f"{own}, call_weight {self.call_weight:g}"


@dataclass(frozen=True)
class Decided:
    """One answer to a task."""

    task: Task
    setting: Setting
    text: str
    calls: list[Call]
    metadata: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The record of a line."""
        return {
            "part": "decisions",
            "setting": self.setting.name,
            "task": self.task.name,
            "kind": self.task.kind,
            "text": self.text,
            "calls": [{"name": call.name, "arguments": call.arguments} for call in self.calls],
            "num_redrawn": self.metadata.get("num_redrawn", 0),
            "intervention_rate": self.metadata.get("intervention_rate"),
        }


def ask(engine: Any, tasks: Iterable[Task], setting: Setting, *, max_tokens: int) -> Iterator[Decided]:
    """One request per task, tools bound, the choice left to the model."""
    tools = [StructuredTool.from_function(function, parse_docstring=True) for function in TOOLS.values()]
    weights: dict[str, Any] = {"reward_weights": setting.weight, "call_weight": setting.call_weight}
    if setting.by_prompt:
        asked = PromptPair(positive={"system": f"{SYSTEM} {FORM}"}, model="small", weight=setting.weight)
        own = None if setting.call_weight is None else {"form": setting.call_weight}
        weights = {"prompt_pairs": {"form": asked}, "call_weight": own}
    llm = EFTChatModel(engine=engine, temperature=0.0, max_tokens=max_tokens, **weights)
    bound = llm.bind_tools(tools)
    for task in tasks:
        message: AIMessage = bound.invoke(conversation(task))
        calls = [Call(call["name"], call["args"]) for call in message.tool_calls]
        yield Decided(task, setting, str(message.text), calls, message.response_metadata.get("eft", {}))


def in_form(text: str, pattern: str | None) -> bool:
    """Whether words match a pattern as a whole; without one, whether they are one line of JSON, as `FORM` asks."""
    return (parse_json_answer(text) if pattern is None else re.fullmatch(pattern, text.strip())) is not None


def summary(answers: Sequence[Decided], base: Sequence[Decided], pattern: str | None = None) -> dict[str, Any]:
    """Figures of one setting beside the base's answers to the same tasks."""
    pairs = list(zip(answers, base, strict=True))
    words = [own for own in answers if not own.calls]
    return {
        "requests": len(answers),
        "as_the_base": share_of([own.calls == other.calls for own, other in pairs]),
        "called_as_the_base": share_of([own.calls == other.calls for own, other in pairs if other.calls]),
        "words_as_the_base": share_of([not own.calls for own, other in pairs if not other.calls]),
        "words_in_form": share_of([in_form(own.text, pattern) for own in words]),
        "facts_in_words": share_of(
            [has_facts(own.text, own.task.last.facts) for own in words if not own.task.next_calls]
        ),
        "redrawn_tokens": sum(own.metadata.get("num_redrawn") or 0 for own in answers) / max(1, len(answers)),
    }


def show(console: Console, summaries: dict[str, dict[str, Any]]) -> None:
    """A column per setting; shares with 95 % intervals."""
    rows = {
        "requests": "requests",
        "the base's decision and arguments": "as_the_base",
        "of those that the base calls in": "called_as_the_base",
        "words where the base has words": "words_as_the_base",
        "words in the pair's form": "words_in_form",
        "text wanted: words with the fact": "facts_in_words",
        "tokens thrown away per request": "redrawn_tokens",
    }
    table = Table(title="one request per task, greedy, tool_choice auto")
    table.add_column("")
    for name in summaries:
        table.add_column(name, justify="right")
    for heading, key in rows.items():
        table.add_row(heading, *(cell(own[key]) for own in summaries.values()))
    console.print(table)
