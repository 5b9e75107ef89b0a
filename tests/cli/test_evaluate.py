"""`eft eval` on a toy trio: the JSON line, the report, and one clear line for every mistake."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from eft_engine.cli import main
from eft_engine.cli.evaluate import load_judge, make_scorer
from eft_engine.errors import InvalidOptionError
from tests.toy import ToyTrio

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `eft` in this process."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eft", *arguments])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def trio(toy_trio: ToyTrio, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of a trio on disk."""
    root = tmp_path_factory.mktemp("trio")
    options = []
    for name in ("base", "tuned", "reference"):
        getattr(toy_trio, name).save_pretrained(root / name)
        toy_trio.tokenizer.save_pretrained(root / name)
        options += [f"--{name}", str(root / name)]
    return options


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"prompt": "one", "answers": ["never said"]}\n{"prompt": "two"}\n', encoding="utf-8")
    return str(path)


def test_eval_scores_every_weight_and_writes_the_report(
    run: Run, trio: list[str], questions: str, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    settings = ["-w", "0", "-w", "tuned=1", "--pattern", "(?s).*", "--max-tokens", "3", "--report", str(report)]
    code, out, err = run("eval", questions, *settings, *trio)
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result["num_questions"] == 2
    assert {label: found["regex"]["share"] for label, found in result["weights"].items()} == {"0": 1.0, "tuned=1": 1.0}
    assert {path.name for path in report.iterdir()} == {"report.md", "answers.jsonl", "scores.png"}


def test_eval_without_expected_answers_says_what_to_add(run: Run, trio: list[str], questions: str) -> None:
    code, _, err = run("eval", questions, "-w", "0", "--max-tokens", "2", *trio)
    assert code == 2
    assert "the question 'two' has no answers to compare with; add answers" in err


def test_eval_names_the_scorers_there_are(run: Run, trio: list[str], questions: str) -> None:
    code, _, err = run("eval", questions, "--scorer", "vibes", *trio)
    assert code == 2
    assert "there is no scorer 'vibes'; scorers: exact, contains, regex, schema, judge" in err


def test_a_judge_is_an_object_or_what_makes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(invoke=lambda prompt: "yes")
    monkeypatch.setitem(sys.modules, "judges", SimpleNamespace(model=model, make=lambda: model, number=lambda: 3))
    assert load_judge("judges:model") is model
    assert load_judge("judges:make") is model
    with pytest.raises(InvalidOptionError, match=r"is a int without invoke\(\)"):
        load_judge("judges:number")
    for name in ("judges:none", "no_such_module:model", "judges"):
        with pytest.raises(InvalidOptionError, match="cannot load the judge"):
            load_judge(name)


@pytest.mark.parametrize(("name", "message"), [("schema", "needs --schema FILE"), ("judge", "needs --judge")])
def test_a_scorer_without_its_option_names_it(name: str, message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        make_scorer(name, pattern=None, schema=None, judge=None, criterion="")


def test_a_schema_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "object"}', encoding="utf-8")
    assert make_scorer("schema", pattern=None, schema=path, judge=None, criterion="").name == "schema"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(InvalidOptionError, match="cannot read the schema"):
        make_scorer("schema", pattern=None, schema=path, judge=None, criterion="")
