"""`eft bake` and `eft score --out` at the command line, and the files of prompts that they read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from eft_engine.cli import main
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.teacher import read_rows
from eft_engine.evaluation.texts import read_texts
from eft_tuning.bake.command import bake
from eft_tuning.bake.prompts import load_asks, split_asks, without
from tests.toy import END_ID, make_tokenizer, save_trio

USER = [{"role": "user", "content": "Hello"}]


def written(path: Path, *lines: dict[str, Any]) -> Path:
    """A file of JSON Lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name a toy trio on disk."""
    folders = save_trio(tmp_path_factory.mktemp("trio"))
    return [part for name, folder in folders.items() for part in (f"--{name}", folder)]


# ---- prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        {"question": "Hello", "answers": ["Hi"]},
        {"messages": USER},
        {"messages": [*USER, {"role": "assistant", "content": "Hi"}]},
        {"prompt": "Hello", "completion": "Hi"},
        {"question": "Hello", "answer": "Hi"},
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
        {"prompt": "Hello", "chosen": "Hi", "rejected": "No"},
    ],
)
def test_prompts_of_question_files_and_of_chat_files_are_what_is_before_the_answer(
    tmp_path: Path, line: dict[str, Any]
) -> None:
    (ask,) = load_asks(written(tmp_path / "file.jsonl", line))
    assert ask.prompt == USER


def test_raw_prompt_stays_raw_and_tools_are_told_to_the_template(tmp_path: Path) -> None:
    from eft_engine import PromptOptions

    (raw,) = load_asks(written(tmp_path / "raw.jsonl", {"prompt": "Once upon"}))
    assert raw.prompt == "Once upon"
    tools = [{"type": "function", "function": {"name": "look"}}]
    chat = {"messages": [*USER, {"role": "assistant", "content": "Hi"}], "tools": tools}
    (ask,) = load_asks(written(tmp_path / "chat.jsonl", chat))
    assert ask.options(PromptOptions()).template_variables == {"tools": tools}


def test_errors_of_a_file_name_its_lines(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="line 2"):
        load_asks(written(tmp_path / "a.jsonl", {"question": "Hello"}, {"no": "question"}))
    with pytest.raises(InvalidOptionError, match="line 2"):
        load_asks(written(tmp_path / "b.jsonl", {"question": "Hello", "answer": "Hi"}, {"no": "question"}))
    with pytest.raises(InvalidOptionError, match="cannot read"):
        load_asks(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InvalidOptionError, match="no questions"):
        load_asks(tmp_path / "empty.jsonl")


def test_split_is_the_same_for_a_seed_and_keeps_equal_prompts_together(tmp_path: Path) -> None:
    lines = [{"question": f"Question {number % 10}"} for number in range(30)]
    asks = load_asks(written(tmp_path / "file.jsonl", *lines))
    learnt, held_out = split_asks(asks, share=0.2, seed=1)
    assert (len(learnt), len(held_out)) == (24, 6)
    assert not {ask.key() for ask in learnt} & {ask.key() for ask in held_out}
    assert split_asks(asks, share=0.2, seed=1) == (learnt, held_out)
    assert split_asks(asks, share=0.2, seed=2) != (learnt, held_out)
    assert split_asks(asks, share=0.0, seed=1) == (asks, [])
    assert without(asks, held_out) == (learnt, 6)
    with pytest.raises(InvalidOptionError, match="too few to hold any out"):
        split_asks(asks[:1], share=0.1, seed=1)
    with pytest.raises(InvalidOptionError, match="all prompts are held out"):
        without(asks[:1], asks[:1])


# ---- eft bake ----------------------------------------------------------------------------------------------------------

Bake = Callable[..., Result]


@pytest.fixture
def run_bake() -> Bake:
    """The command as the application has it; errors pass through it."""
    application = typer.Typer()
    application.command()(bake)
    return lambda *arguments: CliRunner().invoke(application, [str(argument) for argument in arguments])


def test_bake_tells_progress_table_and_one_line_of_json(run_bake: Bake, trio: list[str], tmp_path: Path) -> None:
    prompts = written(tmp_path / "prompts.jsonl", *({"question": f"Question {number}"} for number in range(6)))
    ran = run_bake(
        prompts, *trio, "--out", tmp_path / "out", "-w", "0.5", "--max-tokens", 4, "--epochs", 1, "--rank", 2, "--held-out-share",
        0.4, "--pattern", ".*", "--temperature", 0.5, "--top-k", 8,
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert "the composition answers: 4 of 4" in ran.stderr
    assert "gain kept" in ran.stdout
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["steps"] == 1
    assert told["agreement"]["base"]["divergence"] > 0
    settings = json.loads((tmp_path / "out" / "bake.json").read_text())["settings"]
    assert (settings["rank"], settings["alpha"], settings["temperature"]) == (2, 4, 0.5)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"eos_token_id": END_ID}


def test_interruption_is_told_and_has_the_code_of_the_signal(
    run_bake: Bake, trio: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eft_tuning.bake import run as run_module

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "collect", interrupted)
    prompts = written(tmp_path / "prompts.jsonl", {"question": "Hello"})
    ran = run_bake(prompts, *trio, "--out", tmp_path / "out", "--held-out-share", 0)
    assert (ran.exit_code, "the same command goes on" in ran.stderr) == (130, True)


def test_wrong_options_are_typed_errors(run_bake: Bake, trio: list[str], tmp_path: Path) -> None:
    prompts = written(tmp_path / "prompts.jsonl", {"question": "Hello"}, {"question": "Bye"})
    for arguments, told in (
        (["-w", "0"], "nothing to bake"),
        (["--divergence", "sideways"], "divergence"),
        (["--scorer", "contains"], "has no answers"),
        (["--pattern", "("], "not a regular expression"),
    ):
        ran = run_bake(
            prompts, *trio, "--out", tmp_path / "out", "--held-out-share", 0.5, "--max-tokens", 2, *arguments
        )
        assert isinstance(ran.exception, InvalidOptionError), arguments
        assert told in str(ran.exception)
        assert not (tmp_path / "out" / "adapter_config.json").exists()


# ---- eft score --out ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """What one command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run `eft` in this process, as the console script does."""

    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["eft", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return call


def test_score_writes_what_the_composition_says_of_a_file(
    run: Callable[..., Ran], trio: list[str], tmp_path: Path
) -> None:
    texts = written(
        tmp_path / "texts.jsonl",
        {"question": "Hello", "completion": "Hi"},
        {"prompt": "Once", "completion": " upon"},
        {"question": "Hello"},
    )
    out = tmp_path / "teacher.jsonl"
    ran = run("score", texts, *trio, "--out", out, "--top-k", 4, "--max-tokens", 3, "-w", "0.5")
    assert ran.code == 0, ran.err
    rows = list(read_rows(out))
    assert json.loads(ran.out) == {
        "out": str(out), "texts": 3, "tokens": sum(len(row.completion_ids) for row in rows), "top_k": 4,
    }  # fmt: skip
    tokenizer = make_tokenizer()
    chat = "<|user|>Hello<|end|><|assistant|>"
    assert [tokenizer.decode(row.prompt_ids) for row in rows] == [chat, "Once", chat]
    assert rows[0].completion_ids == (*tokenizer.encode("Hi"), END_ID), "an answer to messages ends its turn"
    assert rows[1].completion_ids == tuple(tokenizer.encode(" upon")), "a raw text goes on"
    assert [row.finish_reason is None for row in rows] == [True, True, False]
    assert {len(place) for row in rows for place in row.logprobs} == {4}
    alone = json.loads(run("score", "Once", " upon", "--raw", *trio, "-w", "0.5", "--json").out)
    assert rows[1].actual_logprobs == pytest.approx([token["composed"] for token in alone["tokens"]], abs=1e-4)
    assert not list(tmp_path.glob("*.part"))


def test_score_says_what_does_not_go_together(run: Callable[..., Ran], trio: list[str], tmp_path: Path) -> None:
    for arguments, told in (
        (["Hello"], "no completion to score"),
        (["Hello", "Hi", "--top-k", 4], "--top-k belongs to --out"),
        (["Hello", "Hi", "--out", "x"], "the completions are in the file"),
        (["Hello", "--out", "x", "--raw"], "--raw and --system are for one prompt"),
        ([tmp_path / "none.jsonl", "--out", "x"], "cannot read"),
    ):
        ran = run("score", *arguments, *trio)
        assert (ran.code, told in ran.err) == (2, True), ran.err


@pytest.mark.parametrize(
    "line", ['{"question": "a", "completion": 3}', '{"no": 1}', "[1]", "{", '{"messages": [], "completion": "a"}']
)
def test_line_that_is_no_text_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "texts.jsonl").write_text('{"prompt": "a"}\n' + line)
    with pytest.raises(InvalidOptionError, match="line 2"):
        read_texts(tmp_path / "texts.jsonl")
