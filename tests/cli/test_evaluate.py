"""`eft eval` on a toy trio: the JSON line, the report, and one clear line for every mistake."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from eft_engine.cli import main
from eft_engine.cli.composition_file import write_composition
from eft_engine.cli.evaluate_settings import load_judge, make_scorer
from eft_engine.cli.trio_options import choose_trio
from eft_engine.config import CompositionOptions, PromptPair
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.run import Weights
from eft_engine.weights import Gate
from eft_integrations.server.settings import load_settings
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
    assert {path.name for path in report.iterdir()} == {
        "report.md",
        "answers.jsonl",
        "scores.png",
        "run.json",
        ".lock",
    }


def test_eval_without_expected_answers_says_what_to_add(run: Run, trio: list[str], questions: str) -> None:
    code, _, err = run("eval", questions, "-w", "0", "--max-tokens", "2", *trio)
    assert code == 2
    assert "questions.jsonl, line 2: has no answers to compare with; add answers" in err


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


def test_tuning_says_what_is_best_and_writes_what_a_server_reads(
    run: Run, trio: list[str], questions: str, tmp_path: Path
) -> None:
    """Every answer passes, so the base alone is as good as anything; a candidate may be a schedule."""
    output, report = tmp_path / "found.yaml", tmp_path / "report"
    schedule = '{"kind": "first_tokens", "num_tokens": 1}'
    tried = ["--candidate", "tuned=1", "--candidate", schedule, "--output", str(output), "--report", str(report)]
    code, out, err = run("eval", questions, "--tune", *tried, "--pattern", "(?s).*", "--max-tokens", "3", *trio)
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert list(result["weights"]) == ["0", "first_tokens(num_tokens=1)", "tuned=1"]
    assert [own["steered"] for own in result["weights"].values()] == [0.0, pytest.approx(1 / 3, abs=1e-3), 1.0]
    assert result["best"] == "0"
    assert result["warnings"][0] == ("nothing that was tried is better than weight 0 without losing what the base has")
    answers = [json.loads(line) for line in (report / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [answer["weights"] for answer in answers] == [
        label for label in [*result["weights"], "tuned", "reference"] for _ in range(2)
    ]
    (composition,) = load_settings(output).compositions
    assert composition.weights == {"tuned": 0.0}
    assert composition.known_pairs() == ["tuned"]


def test_prompt_pairs_are_measured_and_one_weight_is_theirs_where_there_is_no_other_pair(
    run: Run, trio: list[str], questions: str
) -> None:
    base = trio[:2]
    pair = ["--prompt-pair", 'other={"negative": "three"}']
    code, out, err = run(
        "eval", questions, "-w", "0", "-w", "2", *pair, "--pattern", "(?s).*", *base, "--max-tokens", "3"
    )
    assert code == 0, err
    weights = json.loads(out.splitlines()[-1])["weights"]
    assert {label: own["steered"] for label, own in weights.items()} == {"other=0": 0.0, "other=2": 1.0}


def test_a_composition_file_holds_preset_schedules_and_prompt_pairs(tmp_path: Path) -> None:
    choice = choose_trio(preset="atlas", dtype="float32")
    pair = PromptPair(negative={"system": "Be long."}, weight=0.5)
    formula = CompositionOptions(min_plausibility=0.1, prompt_pairs={"short": pair})
    gate = Gate(by="kl", above=0.5)
    settings_tried: list[Weights] = [gate, {"assistant": gate, "short": 0.5}]
    for weights in settings_tried:
        write_composition(tmp_path / "found.json", choice, formula, weights)
        settings = load_settings(tmp_path / "found.json")
        (composition,) = settings.compositions
        assert (composition.name, composition.preset) == ("atlas", "atlas")
        assert composition.weights == {"assistant": gate, "short": 0.5}
        assert composition.prompt_pairs == {"short": pair}
        assert composition.composition.options().min_plausibility == 0.1
        assert settings.engine.dtype == "float32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tune", "-w", "1"], "name what it tries with --candidate"),
        (["--candidate", "1"], "--candidate belongs to --tune"),
        (["--output", "found.json"], "--output belongs to --tune"),
        (["--tune", "--output", "found.toml"], "--output must end in .json, .yaml or .yml, got 'found.toml'"),
        (["--fresh"], "--fresh discards answers in the folder of --report; name it"),
    ],
)
def test_options_of_tuning_that_contradict_each_other_are_refused(
    run: Run, questions: str, options: list[str], message: str
) -> None:
    code, _, err = run("eval", questions, *options)
    assert code == 2
    assert message in err


def test_the_small_models_are_rows_by_themselves(run: Run, trio: list[str], questions: str) -> None:
    """With one pair they have short names; where the reference is the base it is weight 0."""
    asked = ["eval", questions, "-w", "0", "--pattern", "(?s).*", "--max-tokens", "2", "--json"]
    base, tuned, reference = trio[1::2]
    _, out, _ = run(*asked, *trio)
    assert list(json.loads(out)["members"]) == ["tuned", "reference"]
    _, out, _ = run(*asked, "--base", base, "--tuned", tuned, "--reference", base)
    assert list(json.loads(out)["members"]) == ["tuned"]
    several = ["--pair", f"a={tuned},{reference}", "--pair", f"b={base},{reference}", "--term", f"c={tuned}"]
    _, out, _ = run(*asked, "--base", base, *several)
    assert list(json.loads(out)["members"]) == ["a.tuned", "a.reference", "b.tuned"]
    _, out, _ = run(*asked, "--base", base, *several, "--member", "c.tuned")
    assert list(json.loads(out)["members"]) == ["c.tuned"]
    _, out, _ = run(*asked, *trio, "--no-members")
    assert "members" not in json.loads(out)


def test_names_are_checked_before_models_are_loaded(run: Run, questions: str) -> None:
    nowhere = ["--base", "/nowhere", "--tuned", "/nowhere", "--reference", "/nowhere", "--pattern", "x"]
    for wrong, told in (
        (["--member", "small"], "there is no 'small'; members are tuned.tuned, tuned.reference"),
        (["--member", "tuned", "--no-members"], "leave one out"),
        (["-w", "brief=1"], "there is no pair 'brief'"),
        (["--pattern", "("], "not a regular expression"),
    ):
        code, _, err = run("eval", questions, *nowhere, *wrong)
        assert code == 2
        assert told in err


def test_what_is_odd_is_said_before_anything_is_asked(
    run: Run, trio: list[str], toy_trio: ToyTrio, tmp_path: Path
) -> None:
    """The base has a chat template of its own, one question is asked twice, and another is too long."""
    own = tmp_path / "base"
    toy_trio.base.save_pretrained(own)
    tokenizer = copy.deepcopy(toy_trio.tokenizer)
    tokenizer.chat_template = "<|system|>Be kind.<|end|>" + str(tokenizer.chat_template)
    tokenizer.save_pretrained(own)
    path = tmp_path / "questions.jsonl"
    lines = [{"question": "Où?", "answers": ["à Bogotá"]}] * 2
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    asked = ["eval", str(path), "--base", str(own), *trio[2:], "-w", "0", "--max-tokens", "250", "--no-members"]
    code, _, err = run(*asked, "--fold-accents")
    assert code == 0, err
    assert "lines 1, 2 ask the same: 'Où?'" in err
    assert err.count("the base's own chat template renders messages otherwise: 'system|>Be kind.") == 1
    assert "2 prompts leave less than 250 tokens of the context of 256 (line 1 first)" in err
    path.write_text(json.dumps({"question": "a" * 300, "answers": ["b"]}), encoding="utf-8")
    code, _, err = run(*asked)
    assert code == 2
    assert "questions.jsonl, line 1: " in err
    assert "context" in err
