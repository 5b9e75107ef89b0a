"""The report of an evaluation: tables in Markdown, a plot, every answer, and one JSON object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.run import WeightResult


def summary(results: Sequence[WeightResult]) -> dict[str, Any]:
    """What the JSON line says: by weights, the share of each scorer with its interval, lengths, the share that was cut, shares of
    tokens that were steered and (where somebody looked) changed, speed and acceptance.
    """
    return {
        "num_questions": len(results[0].answers) if results else 0,
        "weights": {
            result.label: {
                "asked": len(result.answers),
                **{scorer: result.share(scorer).as_json() for scorer in result.marks},
                "mean_tokens": round(result.mean_tokens, 2),
                "cut": round(result.cut.value, 4),
                "steered": round(result.steered, 4),
                **({} if result.changed is None else {"changed": round(result.changed.value, 4)}),
                "tokens_per_s": round(result.tokens_per_s, 1),
                "acceptance_rate": None if result.acceptance_rate is None else round(result.acceptance_rate, 4),
            }
            for result in results
        },
    }


def write_report(folder: Path, questions: Sequence[Question], results: Sequence[WeightResult]) -> list[Path]:
    """Write `report.md`, `answers.jsonl` and `scores.png` into `folder`, which is made when it is missing. A result
    may have answers to the first questions only.

    Raises:
        InvalidOptionError: the folder cannot be written, or matplotlib is not installed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidOptionError(f"cannot write the report to {folder}: {error}", option="report") from None
    report, answers, plot = folder / "report.md", folder / "answers.jsonl", folder / "scores.png"
    plot_scores(plot, results)
    report.write_text(markdown(results, plot.name), encoding="utf-8")
    with answers.open("w", encoding="utf-8") as file:
        for result in results:
            for index, (question, answer) in enumerate(zip(questions, result.answers, strict=False)):
                line = {
                    "weights": result.label,
                    "question": question.text(),
                    "answer": answer.text,
                    "finish_reason": answer.finish_reason,
                    "expected": question.answers,
                    "group": question.group,
                    **{scorer: marks[index] for scorer, marks in result.marks.items()},
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return [report, answers, plot]


def markdown(results: Sequence[WeightResult], plot: str) -> str:
    """The tables: all questions, then by group where there are several."""
    scorers = list(results[0].marks)
    lines = [
        f"# Evaluation of {len(results[0].answers)} questions",
        "",
        "Shares with Wilson's 95 % intervals.",
        "",
        f"![scores by weight]({plot})",
        "",
        *_table(
            [
                "weights",
                *scorers,
                "questions",
                "tokens steered",
                "tokens an answer",
                "cut by max_tokens",
                "tokens/s",
                "drafts accepted",
            ],
            [
                [
                    result.label,
                    *(str(result.share(scorer)) for scorer in scorers),
                    str(len(result.answers)),
                    f"{result.steered:.0%}",
                    f"{result.mean_tokens:.1f}",
                    f"{result.cut.value:.0%}",
                    f"{result.tokens_per_s:.0f}",
                    "-" if result.acceptance_rate is None else f"{result.acceptance_rate:.0%}",
                ]
                for result in results
            ],
        ),
    ]
    groups = list(dict.fromkeys(results[0].groups))
    if len(groups) > 1:
        for scorer in scorers:
            rows = [[result.label, *(str(result.share(scorer, group=group)) for group in groups)] for result in results]
            lines += ["", f"## {scorer} by group", "", *_table(["weights", *groups], rows)]
    return "\n".join(lines) + "\n"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(headings) + " |",
        "|" + " --- |" * len(headings),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def plot_scores(path: Path, results: Sequence[WeightResult]) -> None:
    """One line a scorer over the settings, with its interval as a band.

    Raises:
        InvalidOptionError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidOptionError("a report has plots and needs matplotlib: pip install 'eft-engine[eval]'") from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    numeric = all(isinstance(result.weights, int | float) for result in results)
    places = [float(result.label) for result in results] if numeric else list(range(len(results)))
    for scorer in results[0].marks:
        shares = [result.share(scorer) for result in results]
        (line,) = axes.plot(places, [share.value for share in shares], marker="o", label=scorer)
        bounds = [share.interval for share in shares]
        lows, highs = zip(*bounds, strict=True)
        axes.fill_between(places, lows, highs, color=line.get_color(), alpha=0.2)
    if not numeric:
        axes.set_xticks(places, [result.label for result in results], rotation=20)
    axes.set(xlabel="reward weight", ylabel="share of answers", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
