"""What `eft tune` says before anything is loaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from eft_engine.errors import InvalidOptionError
from eft_tuning.command import tune
from eft_tuning.libraries import NEEDED, check_libraries
from eft_tuning.saving import differences, newest_checkpoint, open_run
from eft_tuning.settings import TuningSettings


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "trl" else find_spec(name, *more)
    )
    with pytest.raises(InvalidOptionError, match=r"pip install 'eft-engine\[tune\]'"):
        tune(tmp_path / "chats.jsonl", reference="organisation/small", out=tmp_path)


def test_libraries_that_are_there_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: object() if name in NEEDED else None)
    check_libraries()


def test_a_training_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="--out"):
        tune(tmp_path / "chats.jsonl", reference="organisation/small")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"epochs": 0}, "epochs"),
        ({"keep_content": "hodl"}, "keep_content"),
        ({"dtype": "int8"}, "dtype"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"raank": 3}, "did you mean 'rank'"),
    ],
)
def test_wrong_setting_is_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidOptionError, match=named):
        TuningSettings(**given)


def test_newest_whole_checkpoint_goes_on_and_torn_ones_go(tmp_path: Path) -> None:
    for step, whole in ((2, True), (10, True), (12, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if whole:
            (folder / "complete").touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2"]


def test_a_run_is_described_once_and_asked_for_alike(tmp_path: Path) -> None:
    assert open_run(tmp_path / "out", {"seed": 1, "rate": 0.1}, restart=False) is None
    assert open_run(tmp_path / "out", {"seed": 1, "rate": 0.1}, restart=False) is None
    with pytest.raises(InvalidOptionError, match=r"seed was 1 and is 2; rate was 0\.1 and is 0\.2"):
        open_run(tmp_path / "out", {"seed": 2, "rate": 0.2}, restart=False)
    assert open_run(tmp_path / "out", {"seed": 2, "rate": 0.2}, restart=True) is None
    assert differences({"a": 1}, {"b": 1}) == ["a was 1 and is None", "b was None and is 1"]
