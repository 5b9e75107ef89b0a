"""The first half of `eft demo`: Atlas on questions that its small model was never tuned on, beside its parts."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from eft_engine.cli import trio_options as options
from eft_engine.config import EngineConfig, SamplingParams
from eft_engine.outputs import RequestOutput
from eft_engine.zoo.atlas import FactQuestion, has_form, load_fact_questions
from eft_engine.zoo.presets import atlas, find_preset

NUM_SHOWN = 8
MAX_TOKENS = 40
COLUMNS = ("tuned small", "base", "up-scaled")


@dataclass
class Column:
    """One way of answering, and what has been measured of it so far."""

    name: str
    answers: list[RequestOutput]
    seconds: float = 0.0

    def num_correct(self, questions: list[FactQuestion]) -> int:
        """Answers in which the expected one occurs."""
        return sum(question.answer in answer.text for question, answer in zip(questions, self.answers, strict=False))

    @property
    def num_in_form(self) -> int:
        """Answers that have the tuned form; those that were cut have none."""
        return sum(answer.finish_reason == "stop" and has_form(answer.text, "assistant") for answer in self.answers)

    @property
    def tokens_per_s(self) -> float:
        """Over everything answered so far."""
        return sum(answer.usage.completion_tokens for answer in self.answers) / self.seconds if self.seconds else 0.0

    @property
    def acceptance(self) -> str:
        """Drafts accepted, where there were any."""
        drafted = sum(answer.metrics.num_drafted for answer in self.answers)
        return f"{sum(answer.metrics.num_accepted for answer in self.answers) / drafted:.0%}" if drafted else "-"


def show_atlas(*, num_questions: int, device: str, out: Console | None) -> dict[str, Any]:
    """Answer held-out questions with the small tuned model, the base and the up-scaled trio, in a live table.

    Args:
        num_questions: how many are asked; the first ones are shown.
        device: where the models run.
        out: where the table goes; None answers silently.

    Returns:
        What was measured, by column.
    """
    questions = load_fact_questions()[:num_questions]
    columns = [Column(name, []) for name in COLUMNS]
    started = time.perf_counter()
    with contextlib.ExitStack() as held:
        with (out or Console(quiet=True)).status("loading Atlas"):
            trio, small = _load(device, held)
        load_s = time.perf_counter() - started
        asked = ((small, None), (trio, 0.0), (trio, 1.0))
        first_answer_s: float | None = None
        with Live(_shown(questions, columns), console=out or Console(quiet=True), refresh_per_second=8) as live:
            for start, end in _batches(len(questions)):
                for column, (engine, weight) in zip(columns, asked, strict=True):
                    _answer(column, engine, weight, questions[start:end])
                    first_answer_s = first_answer_s or time.perf_counter() - started
                    live.update(_shown(questions, columns))
    return {
        "num_questions": len(questions),
        "load_s": round(load_s, 1),
        "first_answer_s": round(first_answer_s or 0.0, 1),
        "columns": {
            column.name: {
                "correct": column.num_correct(questions) / len(questions),
                "in_form": column.num_in_form / len(questions),
                "tokens_per_s": round(column.tokens_per_s, 1),
                "acceptance": column.acceptance,
            }
            for column in columns
        },
    }


def _load(device: str, held: contextlib.ExitStack) -> tuple[Any, Any]:
    """The trio and the tuned model alone; `held` closes them, and gives torch its threads back."""
    from eft_engine.engine.engine import Engine
    from eft_engine.engine.openmp import num_threads

    held.enter_context(num_threads(1))  # networks this small lose more by sharing work than a second thread saves
    preset, config = find_preset("atlas"), EngineConfig(device=device)
    trio = held.enter_context(Engine.load(preset.base(), pairs=preset.pairs(), config=config))
    return trio, held.enter_context(Engine.load(atlas("assistant"), pairs={}, config=config))


def _batches(num_questions: int) -> list[tuple[int, int]]:
    """The shown questions one by one, the others together: people see answers come, and the rest goes fast."""
    shown = min(NUM_SHOWN, num_questions)
    single = [(index, index + 1) for index in range(shown)]
    return single + ([(shown, num_questions)] if num_questions > shown else [])


def _answer(column: Column, engine: Any, weight: float | None, questions: list[FactQuestion]) -> None:
    prompts = [options.conversation(question.question, system=None) for question in questions]
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    started = time.perf_counter()
    column.answers += engine.generate(prompts, sampling=sampling, reward_weights=weight)
    column.seconds += time.perf_counter() - started


def _shown(questions: list[FactQuestion], columns: list[Column]) -> Group:
    table = Table(title="Atlas: the same questions, three ways (green: correct)", show_lines=True)
    table.add_column("question", ratio=1)
    for column in columns:
        table.add_column(column.name, ratio=2)
    for index, question in enumerate(questions[:NUM_SHOWN]):
        cells = [_cell(question, column, index) for column in columns]
        if any(cells):
            table.add_row(question.question, *cells)
    summary = Table(title=f"Over {len(columns[-1].answers)} held-out questions")
    for heading in ("", "correct", "in the tuned form", "tokens/s", "drafts accepted"):
        summary.add_column(heading, justify="right" if heading else "left")
    for column in columns:
        count = max(1, len(column.answers))
        summary.add_row(
            column.name,
            f"{column.num_correct(questions) / count:.0%}",
            f"{column.num_in_form / count:.0%}",
            f"{column.tokens_per_s:.0f}",
            column.acceptance,
        )
    return Group(table, summary)


def _cell(question: FactQuestion, column: Column, index: int) -> str:
    if index >= len(column.answers):
        return ""
    answer = column.answers[index]
    text = options.shown_if_cut(answer.text.replace("[", "\\["), answer)
    return f"[green]{text}[/green]" if question.answer in answer.text else f"[red]{text}[/red]"
