"""The command line on toy models: what it prints, and one clear line instead of a traceback for every mistake."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from eft_engine.cli import main
from eft_engine.cli.chat import ChatSession
from eft_engine.config import SamplingParams
from eft_engine.errors import InvalidOptionError, InvalidWeightError, UnknownPairError
from tests.toy import END_ID, VOCAB_SIZE, ToyTrio, make_model, make_tokenizer, naive_greedy, save_trio


@dataclass(frozen=True)
class Ran:
    """What one command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `eft` in this process, as the console script does."""

    def call(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["eft", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The toy Llama trio on disk."""
    return save_trio(tmp_path_factory.mktemp("trio"))


@pytest.fixture
def trio(folders: dict[str, str]) -> list[str]:
    """The options that name the trio."""
    return [part for name, folder in folders.items() for part in (f"--{name}", folder)]


def test_version_is_printed(run: Run) -> None:
    assert run("--version").out == "eft 0.1.0\n"


def test_help_lists_every_command(run: Run) -> None:
    shown = run("--help")
    assert all(name in shown.out for name in ("demo", "generate", "chat", "score", "inspect", "bench"))


def test_generate_prints_the_text_of_the_composition(run: Run, trio: list[str], toy_trio: ToyTrio) -> None:
    prompt = "The sky is"
    ran = run("generate", prompt, "--raw", "-n", "8", "-w", "0.5", *trio)
    ids = naive_greedy(toy_trio, toy_trio.tokenizer.encode(prompt), weight=0.5, max_tokens=8)
    assert (ran.code, ran.out) == (0, toy_trio.tokenizer.decode(ids, skip_special_tokens=True) + "\n")


def test_answer_that_the_budget_ended_is_told_as_cut_on_stderr(run: Run, trio: list[str]) -> None:
    whole = run("generate", "The sky is", "--raw", "-n", "8", *trio)
    assert whole.err == "cut: the answer reached --max-tokens, or the end of the context\n"
    assert "cut" not in whole.out
    ended = run("generate", "The sky is", "--raw", "-n", "8", "--stop", whole.out[3], *trio)
    assert ended.out.rstrip("\n") == whole.out[: whole.out.index(whole.out[3])]
    assert ended.err == ""
    assert (
        json.loads(run("generate", "The sky is", "--raw", "-n", "8", "--json", *trio).out)["finish_reason"] == "length"
    )


def test_generate_json_holds_the_whole_output(run: Run, trio: list[str]) -> None:
    ran = run("generate", "Hello", "-n", "4", "-w", "tuned=2", "--seed", "1", "-t", "1", "--json", *trio)
    answer = json.loads(ran.out)
    assert answer["reward_weights"] == {"tuned": 2.0}
    assert answer["usage"]["completion_tokens"] == len(answer["token_ids"]) <= 4


def test_generate_reads_standard_input(run: Run, trio: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from_argument = run("generate", "Hello", "-n", "4", *trio)
    monkeypatch.setattr(sys, "stdin", __import__("io").StringIO("Hello"))
    assert run("generate", "-", "-n", "4", *trio).out == from_argument.out


def test_a_named_pair_is_the_pair_of_the_single_options(run: Run, trio: list[str], folders: dict[str, str]) -> None:
    named = ["--base", folders["base"], "--pair", f"chat={folders['tuned']},{folders['reference']}"]
    assert run("generate", "Hello", "-n", "4", *named).out == run("generate", "Hello", "-n", "4", *trio).out


def test_score_prints_a_table_and_json_with_the_same_sums(run: Run, trio: list[str]) -> None:
    result = json.loads(run("score", "The sky", " is blue", "--raw", "--json", *trio).out)
    assert result["base"] == pytest.approx(sum(token["base"] for token in result["tokens"]))
    table = run("score", "The sky", " is blue", "--raw", *trio).out
    assert f"{result['composed']:.3f}" in table
    assert f"{result['rewards']['tuned']:+.3f}" in table


def test_inspect_shows_members_and_vocabulary_without_loading(run: Run, folders: dict[str, str]) -> None:
    shared = ["--base", folders["base"], "--tuned", folders["tuned"], "--reference", folders["tuned"]]
    report = json.loads(run("inspect", "--json", *shared).out)
    assert [member["network"] for member in report["members"]] == ["base", "tuned.tuned", "tuned.tuned"]
    assert report["total_bytes"] == sum(report["members"][index]["parameter_bytes"] for index in (0, 1))
    shown = run("inspect", *shared).out
    assert "that of tuned.tuned" in shown
    assert f"shared vocabulary: {report['vocabulary']['shared_vocab_size']} ids, 0 masked" in shown
    assert [(end["token_id"], end["token"], end["unused"]) for end in report["ends"]] == [(END_ID, "<|end|>", None)]
    places = "generation_config.json, config.json, tokenizer"
    assert f"'<|end|>' ({END_ID}), named by {places} of base, tuned.tuned, tuned.reference" in shown
    assert report["warnings"] == []


def test_inspect_warns_where_the_template_ends_turns_otherwise(
    run: Run, folders: dict[str, str], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["base"], tmp_path / "base")
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}[/INST]", encoding="utf-8")
    (warning,) = json.loads(run("inspect", "--json", "--base", str(folder)).out)["warnings"]
    assert "ends an answer with '[/INST]', which is no token" in warning
    assert f"warning: {warning}" in run("inspect", "--base", str(folder)).out


def test_inspect_tells_tokens_that_only_the_tuned_model_has(run: Run, folders: dict[str, str], tmp_path: Path) -> None:
    tokenizer = make_tokenizer(extra_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer.eos_token = "<|im_end|>"
    make_model("llama", vocab_size=VOCAB_SIZE + 2).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    chatml = ["inspect", "--base", folders["base"], "--tuned", str(tmp_path), "--reference", folders["reference"]]
    refused = run(*chatml)
    assert refused.code == 2
    assert "ends its texts with '<|im_end|>'" in refused.err
    shown = run(*chatml, "--tuned-only-tokens", "keep")
    assert "kept, with the tuned models' own probability: '<|im_start|>', '<|im_end|>'" in shown.out
    assert "'<|im_end|>' (261), named by" in shown.out


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["generate", "x", "--base", "/no/such/folder"], "no model folder"),
        (["generate", "x", "-w", "much"], "a weight must be a number"),
        (["generate", "x", "-w", "a=1", "-w", "2"], "NAME=NUMBER"),
        (["generate", "x", "-t", "-1"], "SamplingParams.temperature"),
        (["generate", "x", "--dtype", "int3"], "EngineConfig.dtype"),
        (["generate", "x", "--tuned", "a"], "--base is missing"),
        (["generate", "x", "--base", "b", "--tuned", "a"], "--tuned and --reference belong together"),
        (["generate", "x", "--base", "b", "--pair", "chat"], "NAME=TUNED,REFERENCE"),
        (["generate", "x", "--base", "b", "--preset", "smollm2-json"], "do not combine"),
        (["generate", "x", "--preset", "nothing"], "there is no preset 'nothing'"),
        (["generate", "x", "--raw", "--system", "be brief"], "--system needs the chat template"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(run: Run, arguments: list[str], phrase: str) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert phrase in ran.err
    assert ran.err.count("\n") == 1


def test_an_unknown_pair_names_those_there_are(run: Run, trio: list[str]) -> None:
    ran = run("generate", "x", "-w", "chatty=1", *trio)
    assert (ran.code, ran.out) == (2, "")
    assert "there is no pair 'chatty'; this engine has 'tuned'" in ran.err


def test_no_color_leaves_no_escape_codes(folders: dict[str, str]) -> None:
    command = [str(Path(sys.executable).parent / "eft"), "inspect", "--base", folders["base"]]
    environment = {"NO_COLOR": "1", "FORCE_COLOR": "1", "PATH": "/usr/bin:/bin", "HOME": folders["base"]}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "base" in ran.stdout
    assert "\x1b[3" not in ran.stdout


@pytest.fixture
def session(toy_trio: ToyTrio) -> Iterator[ChatSession]:
    """A chat over the toy trio."""
    with toy_trio.engine() as engine:
        yield ChatSession(engine, SamplingParams(max_tokens=6, temperature=0.0), engine.weights)


def test_chat_weight_turns_the_dial(session: ChatSession) -> None:
    assert session.command("/weight chat=0.5") == "chat=0.5"
    assert session.command("/weight 2") == "chat=2"
    assert session.command("/weights") == "chat=2"
    assert session.weights == {"chat": 2.0}


@pytest.mark.parametrize(
    ("line", "error"),
    [("/weight chatty=1", UnknownPairError), ("/weight nan", InvalidWeightError), ("/weight high", InvalidOptionError)],
)
def test_chat_keeps_its_weights_when_a_change_is_wrong(session: ChatSession, line: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        session.command(line)
    assert session.weights == {"chat": 1.0}


def test_chat_remembers_turns_until_reset(session: ChatSession, capsys: pytest.CaptureFixture[str]) -> None:
    first = session.answer("Hello")
    shown = capsys.readouterr()
    assert shown.out == first + "\n"
    assert shown.err == "cut: the answer reached --max-tokens, or the end of the context\n"
    second = session.answer("Again")
    conversation = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Again"},
    ]
    assert session.messages == [*conversation, {"role": "assistant", "content": second}]
    assert session.engine.generate(conversation, sampling=session.sampling).text == second
    assert session.command("/reset") == "conversation forgotten"
    assert session.messages == []


def test_chat_system_message_starts_over(session: ChatSession) -> None:
    session.answer("Hello")
    session.command("/system Be brief.")
    assert (session.system, session.messages) == ("Be brief.", [])
    answered = session.answer("Hello")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert session.engine.generate(messages, sampling=session.sampling).text == answered


def test_chat_refused_turn_is_forgotten(session: ChatSession) -> None:
    with pytest.raises(Exception, match="context holds 256"):
        session.answer("x" * 300)
    assert session.messages == []


def test_chat_explains_unknown_commands(session: ChatSession) -> None:
    assert "/reset" in (session.command("/help") or "")
    assert (session.command("/dance") or "").startswith("unknown command /dance")
    assert session.command("/quit") is None


def test_chat_loop_goes_on_after_a_mistake_and_ends_at_end_of_file(
    run: Run, trio: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["/weight chatty=1", "", "/weights", "Hello"])

    def read(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    ran = run("chat", "-n", "4", "-t", "0", *trio)
    single = run("generate", "Hello", "-n", "4", *trio).out
    assert ran.code == 0
    assert ran.out.splitlines()[0] == "weights: tuned=1; /help lists the commands"
    assert "error: there is no pair 'chatty'" in ran.out
    assert ran.out.endswith(single + "\n")


def test_chat_quits(run: Run, trio: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "/quit")
    assert run("chat", *trio).code == 0


@pytest.mark.thorough
@pytest.mark.smollm2
def test_demo_shows_that_the_weight_is_a_dial(run: Run) -> None:
    summary = json.loads(run("demo", "--questions", "3", "--json").out)
    assert summary["num_questions"] == 3
    assert summary["scores"]["0"] == 0.0
    assert summary["scores"]["1"] > 0.5


def test_bench_measures_every_size_with_every_drafter(run: Run, trio: list[str], tmp_path: Path) -> None:
    figure = tmp_path / "speed.png"
    sizes = ["--batch-size", "1", "--batch-size", "3", "--prompt-tokens", "40", "--max-tokens", "6", "--repeat", "1"]
    ran = run("bench", *sizes, "--drafter", "none", "--drafter", "prompt_lookup", "--plot", str(figure), *trio)
    assert ran.code == 0, ran.err
    *table, last = ran.out.splitlines()
    result = json.loads(last)
    cases = [(case["batch_size"], case["drafter"]) for case in result["results"]]
    assert cases == [(1, "none"), (1, "prompt_lookup"), (3, "none"), (3, "prompt_lookup")]
    for case in result["results"]:
        assert case["tokens_per_s"] > 0
        assert case["ttft_s"] > 0
        assert case["mean_acceptance_length"] >= 1.0
    assert result["conditions"]["max_tokens"] == 6
    assert sum("prompt_lookup" in line for line in table) == 2
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_bench_json_prints_nothing_else(run: Run, trio: list[str]) -> None:
    ran = run("bench", "--batch-size", "1", "--drafter", "auto", "--max-tokens", "4", "--repeat", "1", "--json", *trio)
    assert [case["drafter"] for case in json.loads(ran.out)["results"]] == ["auto"]


def test_bench_refuses_an_unknown_drafter(run: Run, trio: list[str]) -> None:
    ran = run("bench", "--drafter", "oracle", *trio)
    assert ran.code != 0
    assert "oracle" in ran.err
    assert "prompt_lookup" in ran.err


def test_bench_without_matplotlib_says_what_to_install(
    run: Run, trio: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = run("bench", "--plot", str(tmp_path / "speed.png"), *trio)
    assert ran.code != 0
    assert "eft-engine[plot]" in ran.err
