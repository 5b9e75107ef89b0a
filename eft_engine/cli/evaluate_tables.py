"""What `eft eval` prints: the tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from eft_engine.evaluation.report import comparison, number
from eft_engine.evaluation.results import WeightResult


def print_tables(out: Console, results: Sequence[WeightResult], num_questions: int, best: WeightResult | None) -> None:
    """Shares by setting, then what was gained and lost against weight 0."""
    out.print(_shares(results, num_questions, best))
    rows = comparison(results, list(results[0].marks))
    if rows:
        table = Table(title="against weight 0: questions gained and lost, McNemar's exact p")
        for heading in rows[0]:
            table.add_column(heading, justify="right", overflow="fold")
        for row in rows[1:]:
            table.add_row(*row)
        out.print(table)


def _shares(results: Sequence[WeightResult], num_questions: int, best: WeightResult | None) -> Table:
    table = Table(title=f"{num_questions} questions, shares with 95 % intervals")
    scorers = list(results[0].marks)
    shows_asked = best is not None or any(len(own.answers) < num_questions for own in results)
    further = ("changed",) if best else ("tokens", "tokens/s", "drafts accepted")
    for heading in ("weight", *scorers, "cut", *(("asked",) if shows_asked else ()), "steered", *further):
        table.add_column(heading, justify="right", overflow="fold")
    for result in results:
        label = f"{result.label} (best)" if best and result.label == best.label else result.label
        shares = [str(result.share(name)) for name in scorers]
        asked = [str(len(result.answers))] if shows_asked else []
        steered = "-" if result.member else f"{result.steered:.0%}"
        speed = (
            f"{result.mean_tokens:.1f}",
            number(result.tokens_per_s, ".0f"),
            number(result.acceptance_rate, ".0%"),
        )
        changed = (number(None if result.changed is None else result.changed.value, ".0%"),)
        table.add_row(label, *shares, str(result.cut), *asked, steered, *(changed if best else speed))
    return table
