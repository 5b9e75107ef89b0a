"""`eft eval` that is stopped or killed, and goes on: the report is that of a run which nothing disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.test_evaluate import Run, run, trio

__all__ = ["run", "trio"]  # fixtures

SETTINGS = ["-w", "0", "-w", "1", "-w", "2"]
NUM_QUESTIONS = 24
NUM_ANSWERS = NUM_QUESTIONS * (3 + 2)


@pytest.fixture
def questions(tmp_path: Path) -> str:
    """Questions of different lengths."""
    path = tmp_path / "questions.jsonl"
    lines = [
        {"prompt": f"question {number} " + "a" * (number % 7), "answers": ["e"]} for number in range(NUM_QUESTIONS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def answers_in(folder: Path) -> list[dict[str, Any]]:
    """What people read of the answers in a report."""
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "kept"} for line in lines]


def untimed(told: str) -> dict[str, Any]:
    """The JSON line without what depends on the clock, and on what was drafted beside whom."""
    found = json.loads(told.splitlines()[-1])
    for own in (*found["weights"].values(), *found.get("members", {}).values()):
        for name in ("tokens_per_s", "timed", "acceptance_rate"):
            del own[name]
    return dict(found)


def stopped(arguments: list[str], report: Path, number: int, *, more: int) -> tuple[int, str]:
    """Run `eft` as a process, and send it a signal when it has written so many more answers. Its exit status, and stderr."""
    answers = report / "answers.jsonl"
    before = answers.read_bytes().count(b"\n") if answers.exists() else 0
    process = subprocess.Popen(
        [sys.executable, "-c", "from eft_engine.cli import main; main()", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while not answers.exists() or answers.read_bytes().count(b"\n") < before + more:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.002)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, err


@pytest.mark.parametrize(
    ("way", "signals"),
    [
        ("sweep", [signal.SIGKILL]),
        pytest.param("sweep", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], marks=pytest.mark.thorough),
        pytest.param("tune", [signal.SIGKILL, signal.SIGTERM], marks=pytest.mark.thorough),
    ],
)
def test_runs_that_were_killed_and_stopped_end_as_one_that_was_not(
    run: Run, trio: list[str], questions: str, tmp_path: Path, way: str, signals: list[signal.Signals]
) -> None:
    """One process after the other, each ended in its midst, and a last run to the end."""
    report, whole = tmp_path / "report", tmp_path / "whole"
    settings = SETTINGS if way == "sweep" else ["--tune"]
    asked = ["eval", questions, *settings, "--max-tokens", "48", *trio]
    for number in signals:
        code, err = stopped([*asked, "--report", str(report)], report, number, more=20)
        kept = (report / "answers.jsonl").read_bytes().count(b"\n")
        assert kept >= 20
        if number == signal.SIGKILL:
            assert code == -number
            assert not (report / "report.md").exists()
            continue
        assert code == 128 + number, err
        assert "already and are not asked again" in err.splitlines()[0]
        assert f"stopped by {number.name}; {kept} answers are in {report}, and the same command goes on" in err
        assert f"stopped by {number.name} with {kept} answers" in (report / "report.md").read_text(encoding="utf-8")
    code, out, err = run(*asked, "--report", str(report))
    assert code == 0, err
    assert "already and are not asked again" in err
    code, expected, err = run(*asked, "--report", str(whole))
    assert code == 0, err
    assert answers_in(report) == answers_in(whole)
    assert untimed(out) == untimed(expected)


@pytest.mark.parametrize("way", ["sweep", "tune"])
def test_sigterm_leaves_a_report_of_what_is_there_and_no_question_is_asked_twice(
    run: Run, trio: list[str], questions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The judge counts what it is asked, and its 30th answer is the moment of the signal."""
    asked: list[str] = []

    def invoke(prompt: str) -> str:
        asked.append(prompt)
        if len(asked) == 30:
            signal.raise_signal(signal.SIGTERM)
        return "yes"

    monkeypatch.setitem(sys.modules, "judges", SimpleNamespace(model=SimpleNamespace(invoke=invoke)))
    report = tmp_path / "report"
    settings = SETTINGS if way == "sweep" else ["--tune", "--candidate", "1", "--candidate", "2"]
    command = ["eval", questions, *settings, "--judge", "judges:model", "--max-tokens", "3", "--report", str(report)]
    code, out, err = run(*command, *trio)
    assert code == 128 + signal.SIGTERM, err
    told = json.loads(out.splitlines()[-1])
    assert told["stopped"] == "SIGTERM"
    assert [own["asked"] for own in told["members"].values()] == [24, 6]
    assert told["members"]["reference"]["tokens_per_s"] is None
    assert told["members"]["tuned"]["tokens_per_s"] > 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    code, out, err = run(*command, *trio)
    assert code == 0, err
    told = json.loads(out.splitlines()[-1])
    assert len(asked) == NUM_ANSWERS
    assert told["members"]["reference"]["timed"] == 18
    if way == "sweep":
        run(*command, *trio, "--fresh")
        assert len(asked) == 2 * NUM_ANSWERS


def test_without_a_folder_the_table_of_what_is_there_is_shown(
    run: Run, trio: list[str], questions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = iter(range(1000))

    def invoke(prompt: str) -> str:
        if next(count) == 60:
            signal.raise_signal(signal.SIGINT)
        return "yes"

    monkeypatch.setitem(sys.modules, "judges", SimpleNamespace(model=SimpleNamespace(invoke=invoke)))
    code, out, err = run("eval", questions, *SETTINGS, "--judge", "judges:model", "--max-tokens", "2", *trio)
    assert code == 130
    assert "no answer is kept; with --report FOLDER they are" in err
    assert json.loads(out.splitlines()[-1])["weights"]["0"]["asked"] == 13


def test_other_options_are_told_and_the_answers_kept(run: Run, trio: list[str], questions: str, tmp_path: Path) -> None:
    report = tmp_path / "report"
    asked = ["eval", questions, "-w", "1", "--no-members", "--limit", "3", "--report", str(report), *trio]
    assert run(*asked, "--max-tokens", "2")[0] == 0
    code, _, err = run(*asked, "--max-tokens", "3", "--temperature", "0.5")
    assert code == 2
    assert "sampling.max_tokens: 2 then, 3 now" in err
    assert "sampling.temperature: 0.0 then, 0.5 now" in err
    assert "--fresh" in err
    assert len(answers_in(report)) == 3
    code, _, err = run(*asked, "--max-tokens", "2", "--limit", "5", "-w", "0")
    assert code == 0, err
    assert f"3 answers are in {report} already" in err
    assert len(answers_in(report)) == 10
    (tmp_path / "questions.jsonl").write_text('{"prompt": "another", "answers": ["e"]}\n', encoding="utf-8")
    assert run(*asked, "--max-tokens", "2")[0] == 0
    assert [line["question"] for line in answers_in(report)] == ["another"]
    earlier = (report / "earlier_answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(earlier) == 10


def test_a_model_that_was_tuned_again_is_another_one(run: Run, trio: list[str], questions: str, tmp_path: Path) -> None:
    report = tmp_path / "report"
    tuned = Path(trio[trio.index("--tuned") + 1])
    asked = ["eval", questions, "-w", "1", "--no-members", "--limit", "1", "--max-tokens", "2", "--report", str(report)]
    assert run(*asked, *trio)[0] == 0
    weights = tuned / "model.safetensors"
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-4] + b"\0\0\0\0")
        code, _, err = run(*asked, *trio)
    finally:
        weights.write_bytes(before)
    assert code == 2
    assert "tuned.tuned: " in err
    assert "reference" not in err
