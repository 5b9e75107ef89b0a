"""The report of an evaluation: tables in Markdown, a plot, every answer, and one JSON object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.answer_log import RUN
from eft_engine.evaluation.cut import cut_warnings
from eft_engine.evaluation.paired import against, gap_closed
from eft_engine.evaluation.plot import plot_scores
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.results import WeightResult, base_of

GAP_CLOSED = (
    "*Gap closed*: how far a setting is on the way from the worse one of base and tuned small model to the better one. Of content, "
    "which the base has, (x - tuned) / (base - tuned): what is kept; of form, which the tuned model has, (x - base) / (tuned - "
    "base): what is taken over. `-`: one of them was not asked, or their gap may be chance (McNemar's p above 0.05)."
)
AGAINST = (
    "By scorer: questions that only this setting (+) and only weight 0 (-) has right, and the two-sided p of McNemar's "
    "exact test."
)


def summary(results: Sequence[WeightResult]) -> dict[str, Any]:
    """What the JSON line says: by weights, and by members that answered alone, the share of each scorer with its interval, what it
    gained and lost against weight 0 and how much of the gap it closes, lengths, the share that was cut, shares of tokens that were
    steered and (where somebody looked) changed, speed (of so many answers as were timed) and acceptance.
    """
    members = [own for own in results if own.member is not None]
    base = base_of(results)
    return {
        "num_questions": max((len(own.answers) for own in results), default=0),
        "weights": {own.label: _numbers(own, base, members) for own in results if own.member is None},
        **({"members": {own.label: _numbers(own, base, members) for own in members}} if members else {}),
    }


def _numbers(result: WeightResult, base: WeightResult | None, members: Sequence[WeightResult]) -> dict[str, Any]:
    compared = {
        name: against(result, base, name).as_json() for name in result.marks if base is not None and result is not base
    }
    gaps = {name: gap_closed(result, base, members, name) for name in result.marks}
    return {
        "asked": len(result.answers),
        **{scorer: result.share(scorer).as_json() for scorer in result.marks},
        **({"against_weight_0": compared} if compared else {}),
        **({"gap_closed": {name: _rounded(gap) for name, gap in gaps.items()}} if any_known(gaps.values()) else {}),
        "mean_tokens": round(result.mean_tokens, 2),
        "cut": result.cut.as_json(),
        "steered": round(result.steered, 4),
        **({} if result.changed is None else {"changed": round(result.changed.value, 4)}),
        "tokens_per_s": _rounded(result.tokens_per_s, 1),
        "timed": result.timing.num_answers,
        "acceptance_rate": _rounded(result.acceptance_rate),
    }


def any_known(values: Any) -> bool:
    """Whether some value is not None."""
    return any(value is not None for value in values)


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)


def write_report(
    folder: Path,
    questions: Sequence[Question],
    results: Sequence[WeightResult],
    *,
    warnings: Sequence[str] | None = None,
) -> list[Path]:
    """Write `report.md`, `answers.jsonl` and `scores.png` into `folder`, which is made when it is missing. Where there is a log of
    answers, they are there already (`answer_log.open_log`).

    Args:
        folder: where.
        questions: what was asked; a result may have answers to some of them only.
        results: of settings and members.
        warnings: what the report warns of; None: of what max_tokens cut.

    Raises:
        InvalidOptionError: the folder cannot be written, or matplotlib is not installed.
    """
    report, answers, plot = folder / "report.md", folder / "answers.jsonl", folder / "scores.png"
    told = cut_warnings(results) if warnings is None else warnings
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plot_scores(plot, results)
        report.write_text(markdown(results, plot.name, num_questions=len(questions), warnings=told), encoding="utf-8")
        if not (folder / RUN).exists():
            answers.write_text(_answers(questions, results), encoding="utf-8")
    except OSError as error:
        raise InvalidOptionError(f"cannot write the report to {folder}: {error}", option="report") from None
    return [report, answers, plot]


def _answers(questions: Sequence[Question], results: Sequence[WeightResult]) -> str:
    lines = [
        {
            "weights": result.label,
            "question": questions[place].text(),
            "answer": answer.text,
            "finish_reason": answer.finish_reason,
            "expected": questions[place].answers,
            "group": questions[place].group,
            **{scorer: marks[index] for scorer, marks in result.marks.items()},
        }
        for result in results
        for index, (place, answer) in enumerate(zip(result.places, result.answers, strict=True))
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def markdown(results: Sequence[WeightResult], plot: str, *, num_questions: int, warnings: Sequence[str] = ()) -> str:
    """The tables: all questions, what was gained and lost, then by group where there are several."""
    scorers = list(results[0].marks)
    lines = [f"# Evaluation of {num_questions} questions", ""]
    unfinished = [own.label for own in results if len(own.answers) < num_questions]
    if unfinished:
        lines += [f"Not all questions were asked at: {', '.join(unfinished)}.", ""]
    lines += [f"- warning: {warning}" for warning in warnings] + ([""] if warnings else [])
    lines += ["Shares with Wilson's 95 % intervals.", "", f"![scores by weight]({plot})", ""]
    lines += _table(
        [
            "weights",
            *scorers,
            "questions",
            "cut by max_tokens",
            "tokens steered",
            "tokens an answer",
            "tokens/s",
            "drafts accepted",
        ],
        [
            [
                result.label,
                *(str(result.share(scorer)) for scorer in scorers),
                str(len(result.answers)),
                str(result.cut),
                "-" if result.member else f"{result.steered:.0%}",
                f"{result.mean_tokens:.1f}",
                number(result.tokens_per_s, ".0f"),
                number(result.acceptance_rate, ".0%"),
            ]
            for result in results
        ],
    )
    lines += _comparison(results, scorers)
    groups = list(dict.fromkeys(group for result in results for group in result.groups))
    if len(groups) > 1:
        for scorer in scorers:
            rows = [[result.label, *(str(result.share(scorer, group=group)) for group in groups)] for result in results]
            lines += ["", f"## {scorer} by group", "", *_table(["weights", *groups], rows)]
    return "\n".join(lines) + "\n"


def comparison(results: Sequence[WeightResult], scorers: Sequence[str]) -> list[list[str]]:
    """Rows of the comparison with weight 0: what is gained and lost in each scorer, and where any is known, how much of the gap is
    closed; none where weight 0 was not asked.
    """
    base = base_of(results)
    if base is None:
        return []
    members = [own for own in results if own.member is not None]
    gaps = {own.label: [gap_closed(own, base, members, scorer) for scorer in scorers] for own in results}
    has_gap = [any_known(column) for column in zip(*gaps.values(), strict=True)]
    rows = [["weights"]]
    for scorer, has in zip(scorers, has_gap, strict=True):
        rows[0] += [scorer, *([f"{scorer}, gap closed"] if has else [])]
    for own in results:
        if own is base:
            continue
        row = [own.label]
        for scorer, has, gap in zip(scorers, has_gap, gaps[own.label], strict=True):
            row += [str(against(own, base, scorer)), *([number(gap, ".0%")] if has else [])]
        rows.append(row)
    return rows if len(rows) > 1 else []


def _comparison(results: Sequence[WeightResult], scorers: Sequence[str]) -> list[str]:
    rows = comparison(results, scorers)
    if not rows:
        return []
    told = ["", "## Against weight 0", "", AGAINST, ""]
    if any("gap closed" in heading for heading in rows[0]):
        told += [GAP_CLOSED, ""]
    return [*told, *_table(rows[0], rows[1:])]


def number(value: float | None, form: str) -> str:
    """A number for tables; `-` where there is none.

    >>> number(0.5, ".0%"), number(None, ".0%")
    ('50%', '-')
    """
    return "-" if value is None else format(value, form)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(headings) + " |",
        "|" + " --- |" * len(headings),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
