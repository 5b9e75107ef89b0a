"""Plain lines of progress, and the estimate in them."""

from __future__ import annotations

import io
import time

import pytest

from eft_engine.cli.evaluate_progress import EvaluationProgress
from eft_engine.evaluation.settings import Setting

TUNED = Setting(member="chat.tuned", called="tuned")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that tests set."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_lines_tell_the_setting_what_is_there_and_about_how_long_it_takes(clock: list[float]) -> None:
    """A small member answers in a second, a composition in ten; ten answers were there before."""
    out = io.StringIO()
    progress = EvaluationProgress(settings=40, members=20, stream=out)
    progress.advance(TUNED, 0, 20)
    for done in range(1, 21):
        clock[0] += 1.0
        progress.advance(TUNED, done, 20)
    progress.advance(Setting(0.5), 10, 20)
    for done in range(11, 21):
        clock[0] += 10.0
        progress.advance(Setting(0.5), done, 20)
    lines = out.getvalue().splitlines()
    assert lines[0] == "tuned: 0 of 20 answers; 0 of 60 in all, 0 s"
    assert lines[1] == "tuned: 10 of 20 answers; 10 of 60 in all, 10 s"
    assert "weight 0.5: 10 of 20 answers; 30 of 60 in all, 20 s" in lines
    assert lines[-1] == "weight 0.5: 20 of 20 answers; 40 of 60 in all, 2 min 0 s, about 3 min 20 s left"


def test_lines_come_while_nothing_is_answered_and_become_rare(clock: list[float]) -> None:
    out = io.StringIO()
    progress = EvaluationProgress(settings=40, members=0, stream=out)
    progress.advance(Setting(0.5), 0, 20)
    for _ in range(3600):
        clock[0] += 1.0
        progress.wait()
    lines = out.getvalue().splitlines()
    assert "0 of 40 in all, 10 s" in lines[1]
    assert 30 < len(lines) < 80


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    out = io.StringIO()
    with EvaluationProgress(settings=40, members=0, stream=out) as progress:
        for done in range(3):
            progress.advance(Setting(0.5), done, 20)
    assert "weight 0.5: 2 of 20" in out.getvalue()
    assert "━" in out.getvalue()
    assert "answers;" not in out.getvalue()
