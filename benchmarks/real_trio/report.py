"""Tables of what was answered: shares with intervals, the gap that is closed, gained and lost against the base, and the cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.real_trio.asking import Answer, Setting, read
from benchmarks.real_trio.forms import FORMS, STEPS, Content, Form, InForm
from eft_engine.evaluation.intervals import Share, share_of
from eft_engine.evaluation.questions import Question

HEADINGS = (
    "setting", "asked", "content", "facts", "problems", "form", "gained / lost", "cut", "tokens an answer",
    "CPU s a token; an answer (base = 1)", "drafts accepted",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What one setting gave."""

    label: str
    answers: Sequence[Answer]
    groups: Sequence[str]
    right: Sequence[bool]
    in_form: Sequence[bool]

    def content(self, group: str | None = None) -> Share:
        """Right answers, of all questions or of a group."""
        return share_of([mark for mark, own in zip(self.right, self.groups, strict=True) if group in (None, own)])

    @property
    def form(self) -> Share:
        """Whole answers in form."""
        return share_of(list(self.in_form))

    @property
    def cut(self) -> Share:
        """Answers that the limit ended."""
        return share_of([answer.finish_reason == "length" for answer in self.answers])

    @property
    def tokens(self) -> int:
        """All tokens of the answers."""
        return sum(answer.tokens for answer in self.answers)

    @property
    def cpu_s_per_token(self) -> float:
        """Processor time of a token, its share of reading the prompts included."""
        return sum(answer.cpu_s for answer in self.answers) / max(1, self.tokens)

    @property
    def acceptance(self) -> float | None:
        """Accepted / drafted tokens; None: nothing was drafted."""
        drafted = sum(answer.drafted for answer in self.answers)
        return sum(answer.accepted for answer in self.answers) / drafted if drafted else None

    @property
    def by_question(self) -> dict[str, bool]:
        """Whether each question is answered rightly."""
        return {answer.question: mark for answer, mark in zip(self.answers, self.right, strict=True)}

    def against(self, base: Row) -> tuple[int, int]:
        """Questions that only this setting answers rightly, and those that only the base does."""
        other_marks = base.by_question
        pairs = [(own, other_marks[name]) for name, own in self.by_question.items() if name in other_marks]
        return sum(own and not other for own, other in pairs), sum(other and not own for own, other in pairs)


def form_of(setting: Setting) -> Form:
    """The form that a setting's adapter was tuned for: by its name."""
    adapter = setting.parts[0] or ""
    return next((form for name, form in FORMS.items() if name in adapter), STEPS)


def rows(folder: Path, questions: Sequence[Question]) -> list[Row]:
    """The rows of all files of a folder; the base first, then by name."""
    found: list[Row] = []
    for path in sorted(
        folder.glob("*.jsonl"), key=lambda each: (each.stem != "base", each.stem != "reference", each.stem)
    ):
        known = read(path)
        asked = [question for question in questions if question.text() in known]
        answers = [known[question.text()] for question in asked]
        if not answers:
            continue
        form = form_of(Setting(path.stem))
        content, in_form = Content(form), InForm(form)
        right = [content.score(question, answer.text) for question, answer in zip(asked, answers, strict=True)]
        formed = [
            answer.finish_reason != "length" and in_form.score(question, answer.text)
            for question, answer in zip(asked, answers, strict=True)
        ]
        found.append(Row(path.stem, answers, [question.group for question in asked], right, formed))
    return found


def gap_closed(own: Row, base: Row, small: Row) -> float | None:
    """(own - small) / (base - small) in content, on the questions that all have; None where the base is not above."""
    marks = [row.by_question for row in (own, base, small)]
    shared = [name for name in marks[0] if all(name in each for each in marks)]
    here, high, low = (sum(each[name] for name in shared) for each in marks)
    return (here - low) / (high - low) if high > low else None


def table(found: Sequence[Row]) -> list[list[str]]:
    """Cells by row."""
    base = next((row for row in found if row.label == "base"), None)
    by_label: Mapping[str, Row] = {row.label: row for row in found}
    cells: list[list[str]] = []
    for row in found:
        against = "-"
        if base is not None and row is not base:
            gained, lost = row.against(base)
            small = by_label.get(f"{Setting(row.label).parts[0]}.alone")
            closed = gap_closed(row, base, small) if small is not None and small is not row else None
            against = f"{gained} / {lost}" + ("" if closed is None else f", {closed:.0%} of the gap")
        relative = "-" if base is None else _relative(row, base)
        accepted = "-" if row.acceptance is None else f"{row.acceptance:.0%}"
        cells.append([
            row.label, str(len(row.answers)), str(row.content()), _of_group(row, "facts"), _of_group(row, "problems"),
            str(row.form), against, f"{row.cut.value:.0%}", f"{row.tokens / len(row.answers):.0f}", relative, accepted,
        ])  # fmt: skip
    return cells


def _of_group(row: Row, group: str) -> str:
    return str(row.content(group)) if group in row.groups else "-"


def _relative(own: Row, base: Row) -> str:
    """Processor time of a token and of an answer, in terms of the base's; answers to the questions that both were asked."""
    asked = own.by_question.keys() & base.by_question.keys()
    own_s, base_s = (sum(each.cpu_s for each in row.answers if each.question in asked) for row in (own, base))
    return f"{own.cpu_s_per_token / base.cpu_s_per_token:.2f}; {own_s / base_s:.2f}" if asked else "-"


def markdown(found: Sequence[Row]) -> str:
    """The table in Markdown."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *table(found)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def as_json(found: Sequence[Row]) -> dict[str, Any]:
    """By setting the shares."""
    return {
        row.label: {
            "asked": len(row.answers),
            "content": row.content().as_json(),
            "form": row.form.as_json(),
            "cut": row.cut.as_json(),
            "cpu_s_per_token": round(row.cpu_s_per_token, 4),
            "acceptance": row.acceptance,
        }
        for row in found
    }
