"""The GPU benchmark's code, run where there is no GPU: what it measures means nothing here, that it runs and agrees does."""

from __future__ import annotations

import json

import torch
import typer
from typer.testing import CliRunner

from benchmarks import gpu


def run(*arguments: str) -> dict[str, object]:
    app = typer.Typer()
    app.command()(gpu.main)
    outcome = CliRunner().invoke(app, ["--device", "cpu", "--tiny", *arguments], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return dict(json.loads(outcome.stdout.splitlines()[-1]))


def test_every_part_runs_and_every_way_of_decoding_gives_the_right_text() -> None:
    result = run("--batch", "2", "--acceptance", "1")
    assert set(result["speed"]["2"]) == {
        "naive loop",
        "base alone, static cache",
        "engine, no drafts",
        "engine, acceptance 1",
    }
    assert result["draft"]["floor_s"] > 0
    assert result["overhead"]["overhead_share"] < 1


def test_one_part_can_be_run_alone() -> None:
    result = run("--part", "draft")
    assert "draft" in result
    assert "speed" not in result
    assert "overhead" not in result


def test_random_base_answers_each_token_with_its_successor_by_a_wide_margin() -> None:
    trio = gpu.make_trio(torch.device("cpu"), tiny=True)
    token_ids = torch.tensor([[7, 300, 511]])
    with torch.inference_mode():
        best = trio.base(token_ids).logits[0].topk(2)
    assert best.indices[:, 0].tolist() == [8, 301, 0]
    assert (best.values[:, 0] - best.values[:, 1]).min() > 1.0
