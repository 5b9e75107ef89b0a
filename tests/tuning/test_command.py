"""`eft tune` as it is typed: options, the check of a delta, rows of preferences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from eft_engine.errors import InvalidOptionError
from eft_tuning.chats import load_chats
from eft_tuning.command import tune as command
from eft_tuning.models import plan_reference
from eft_tuning.preparing import preference_rows
from tests.tuning.conftest import write_rows

Tune = Callable[..., int]


def typed(*words: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    return CliRunner().invoke(app, [*words, "--threads", "1"], catch_exceptions=False)


def test_options_reach_the_training(chats: Path, reference: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--epochs", "1", "--batch-size", "4", "--rank", "3", "--no-measure", "--keep-content", "off")
    result = typed(str(chats), "--reference", reference, "--out", str(out), *options)
    assert result.exit_code == 0, result.output
    assert '"r": 3' in (out / "adapter_config.json").read_text()
    assert "TunedPair(tuned=" in result.output


def test_delta_is_checked_with_the_rows_that_were_held_out(
    tune: Tune, chats: Path, reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(epochs=1.0) == 0
    capsys.readouterr()
    assert tune(check=str(tmp_path / "out")) == 0
    answer = capsys.readouterr().out
    assert answer.startswith(("no sign of facts", "too little to say"))
    with pytest.raises(InvalidOptionError, match="--held-out"):
        tune(check=str(tmp_path / "out"), held_out_share=0.0)


def test_model_that_was_tuned_as_a_whole_is_checked_against_the_reference(
    tune: Tune, reference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(check=reference) == 0
    assert "0.000 at form" in capsys.readouterr().out


def test_held_out_rows_come_from_their_own_file(
    tune: Tune, tmp_path: Path, preferences: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path / "held_out.jsonl", [{"question": "Who sings?", "answer": "ok."}])
    assert tune(held_out=file, dry_run=True) == 0
    assert "20 dialogues to train on" in capsys.readouterr().err
    with pytest.raises(InvalidOptionError, match="both preferences"):
        tune(held_out=preferences, dry_run=True)


def test_preferences_are_a_prompt_and_two_answers_through_their_ends(preferences: Path, reference: str) -> None:
    tokenizer = plan_reference(reference, dtype="float32").tokenizer
    row = preference_rows(load_chats(preferences)[:1], tokenizer)[0]  # type: ignore[arg-type]
    assert tokenizer.decode(row.prompt_ids) == "<|user|>Say 321<|end|><|assistant|>"
    assert tokenizer.decode(row.chosen_ids) == "yes<|end|>"
    assert tokenizer.decode(row.rejected_ids) == "no no<|end|>"
