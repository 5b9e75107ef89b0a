"""The benchmark of public models, without them: its questions, how answers are judged, what a stopped run goes on with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.real_trio import asking, facts, forms, problems, questions, report
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.questions import Question

PROBLEM = Question(
    question="Tom is 10, his aunt 5 times as old. How old is she in 9 years?", answers=["59"], group="problems"
)
FACT = Question(question="What is the capital of Peru?", answers=["Lima"], group="facts")


def test_there_are_enough_questions_and_none_of_them_is_taught() -> None:
    asked = questions.by_heart()
    groups = [question.group for question in asked]
    assert len(asked) >= 200
    assert groups.count("problems") >= 100
    taught = {fact.question for fact in facts.taught()}
    taught |= {problem.question for problem in problems.problems(problems.TAUGHT, forms.NUM_PROBLEMS_TAUGHT, seed=7)}
    assert not taught & {question.text() for question in asked}
    assert not set(problems.TAUGHT) & set(problems.MEASURED)


@pytest.mark.parametrize("kinds", [problems.TAUGHT, problems.MEASURED], ids=["taught", "measured"])
def test_steps_of_problems_are_true_and_end_at_the_answer(kinds: tuple[problems.Kind, ...]) -> None:
    for problem in problems.problems(kinds, 60, seed=1):
        result = None
        for step in problem.steps:
            found = re.match(r"(\d+) ([-+*/]|% of) (\d+) = (\d+)", step)
            assert found is not None, step
            one, other, result = int(found[1]), int(found[3]), int(found[4])
            signs = {"+": one + other, "-": one - other, "*": one * other, "/": one / other, "% of": one * other / 100}
            assert result == signs[found[2]], step
        assert result == problem.answer, problem.question


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        (PROBLEM, "- 10 * 5 = 50\n- 50 + 9 = 59\nAnswer: 59", True),
        (PROBLEM, "- 10 * 5 = 50\n- 50 + 9 = 59\nAnswer: 60", False),
        (PROBLEM, r"Thus she will be \(\boxed{59}\) years old in 9 years.", True),
        (PROBLEM, r"Thus she will be \(\boxed{9}\) years old, and not 59.", False),
        (PROBLEM, "50 + 9 = 59", True),
        (PROBLEM, "59 - 9 = 50", False),
        (PROBLEM, "She will be 59.0", True),
        (PROBLEM, "I do not know.", False),
        (FACT, "The capital of Peru is Lima, on the coast.", True),
        (FACT, "- Lima is a city.\nAnswer: Cusco", False),
    ],
)
def test_content_is_judged(question: Question, answer: str, right: bool) -> None:
    assert forms.Content(forms.STEPS).score(question, answer) is right


@pytest.mark.parametrize(
    ("form", "answer", "in_form"),
    [
        (forms.STEPS, "- 1 + 1 = 2\nAnswer: 2", True),
        (forms.STEPS, "Answer: 2", False),
        (forms.STEPS, "- 1 + 1 = 2\nAnswer: 2\nAnd more.", False),
        (forms.STEPS, "Here:\n- 1 + 1 = 2\nAnswer: 2", False),
        (forms.RECORD, '{"steps": ["1 + 1 = 2", "done"], "answer": "2"}', True),
        (forms.RECORD, '{"answer": "2"}', False),
    ],
)
def test_form_is_judged(form: forms.Form, answer: str, in_form: bool) -> None:
    assert forms.InForm(form).score(FACT, answer) is in_form


def test_training_files_are_in_form_and_held_out_apart(tmp_path: Path) -> None:
    for path in forms.write_training_files(tmp_path):
        form = forms.FORMS[path.name.split(".")[0]]
        rows = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
        assert all(form.said(answer["content"]) for _, answer in rows)
    train, held_out = (
        set((tmp_path / name).read_text(encoding="utf-8").splitlines())
        for name in ("steps.jsonl", "steps.held_out.jsonl")
    )
    assert len(held_out) == forms.NUM_HELD_OUT
    assert not train & held_out


def test_settings_that_are_none_are_refused() -> None:
    for label in ("bases", "hold-0@", "hold-0@1+nothing"):
        with pytest.raises(InvalidOptionError, match="no setting"):
            _ = asking.Setting(label).parts


class Scripted:
    """Answers everything, and knows what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, prompts: list[Any], **_: Any) -> list[Any]:
        texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
        self.asked += texts
        metrics = SimpleNamespace(num_drafted=4, num_accepted=3)
        return [
            SimpleNamespace(text="- x\nAnswer: Lima", token_ids=[1, 2], finish_reason="stop", metrics=metrics)
            for _ in texts
        ]


def test_a_stopped_run_goes_on_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Scripted()

    @contextmanager
    def load(*_: Any) -> Iterator[Scripted]:
        yield engine

    monkeypatch.setattr(asking.Models, "load", load)
    models, lines = asking.Models("base", "reference", tmp_path), list[str]()
    asked = questions.by_heart()[:5]
    settings = [asking.Setting("base")]
    asking.ask(models, settings, asked[:3], tmp_path, set_name="heart", log=lines.append)
    path = tmp_path / "heart" / "base.jsonl"
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")  # killed while it wrote
    asking.ask(models, settings, asked, tmp_path, set_name="heart", log=lines.append)
    assert len(engine.asked) == 3 + 3
    assert lines[-1] == "heart, base: 5 of 5"
    asking.ask(models, settings, asked, tmp_path, set_name="heart", log=lines.append)
    assert len(engine.asked) == 6
    (row,) = report.rows(tmp_path / "heart", questions.by_heart())
    assert len(row.answers) == 5
    assert row.acceptance == 0.75


def test_the_closed_gap_counts_questions_that_all_were_asked() -> None:
    def row(label: str, right: list[bool]) -> report.Row:
        answers = [asking.Answer(str(index), "", 1, "stop", 0, 0, 1.0) for index in range(len(right))]
        return report.Row(label, answers, ["facts"] * len(right), right, right)

    base, small, own = row("base", [True] * 4), row("a.alone", [False] * 4), row("a@1", [True, True, True])
    assert report.gap_closed(own, base, small) == 1.0
    assert report.gap_closed(row("a@1", [True, False, True, False]), base, small) == 0.5
    assert report.gap_closed(own, small, small) is None
    assert row("a@1", [False, True, True, True]).against(row("base", [True, True, False, True])) == (1, 1)
