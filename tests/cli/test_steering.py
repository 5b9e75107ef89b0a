"""`--term`, `--prompt-pair`, schedules and plausibility on the command line: what the engine says of the same."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from eft_engine import (
    CompositionOptions,
    Engine,
    Gate,
    MemberConfig,
    PromptPair,
    SamplingParams,
    Term,
    TunedPair,
    Weight,
)
from eft_engine.cli.app import app
from eft_engine.cli.chat import ChatSession
from eft_engine.cli.trio_options import parse_weights, split_weights
from eft_engine.config import Pair
from eft_engine.errors import InvalidOptionError, UnknownPairError
from eft_integrations.server.command import composition
from tests.toy import make_model, make_tokenizer

GATE = '{"kind": "gate", "by": "base_entropy", "above": 3.0}'
SAMPLING = SamplingParams(max_tokens=6, temperature=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three toy models on disk."""
    root = tmp_path_factory.mktemp("models")
    for name, hidden_size, seed in (("base", 64, 1), ("tuned", 32, 2), ("reference", 32, 3)):
        make_model("llama", hidden_size=hidden_size, seed=seed).save_pretrained(root / name)
        make_tokenizer().save_pretrained(root / name)
    return {name: str(root / name) for name in ("base", "tuned", "reference")}


@pytest.fixture
def named(folders: dict[str, str]) -> list[str]:
    """A base with a pair and a term."""
    pair, term = f"chat={folders['tuned']},{folders['reference']}", f"reward={folders['tuned']}"
    return ["--base", folders["base"], "--pair", pair, "--term", term]


@pytest.fixture
def engine(folders: dict[str, str]) -> Engine:
    """The same in this process."""
    pairs: dict[str, Pair] = {
        "chat": TunedPair(folders["tuned"], folders["reference"]),
        "reward": Term(folders["tuned"]),
    }
    return Engine.load(MemberConfig(source=folders["base"]), pairs=pairs)


def shown(*arguments: str) -> str:
    """What a command prints."""
    ran = CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "250"})
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def test_generate_and_score_say_what_the_engine_says(named: list[str], engine: Engine) -> None:
    steered = ["--raw", "-w", f"chat={GATE}", "-w", "reward=0.25", "-w", "brief=2", "--min-plausibility", "0.01"]
    steered += ["--tuned-plausibility", "0.5"]
    steered += ["--prompt-pair", 'brief={"negative": "other words"}', "--positive", "once upon a time"]
    pairs = {"brief": PromptPair(negative="other words"), "system": PromptPair(positive="once upon a time")}
    options = CompositionOptions(prompt_pairs=pairs, min_plausibility=0.01, tuned_plausibility=0.5)
    weights: dict[str, Weight] = {"chat": Gate(by="base_entropy", above=3.0), "reward": 0.25, "brief": 2.0}
    with engine:
        alone = engine.generate("The sky", sampling=SAMPLING, reward_weights=weights, composition=options)
        scores = engine.score("The sky", " is", reward_weights=weights, composition=options)
    told = json.loads(shown("generate", "The sky", "--json", "-n", "6", *steered, *named))
    assert (told["text"], told["token_ids"]) == (alone.text, list(alone.token_ids))
    assert told["intervention_rate"] == pytest.approx(alone.intervention_rate)
    assert told["reward_weights"]["chat"]["kind"] == "gate"
    plain = json.loads(shown("score", "The sky", " is", "--json", *steered, *named))
    assert plain["composed"] == pytest.approx(scores.composed, abs=1e-4)
    assert plain["intervention_rate"] == pytest.approx(scores.intervention_rate)
    table = shown("score", "The sky", " is", *steered, *named)
    for heading in (
        "chat weight",
        "brief.positive",
        "brief.negative",
        "reward.tuned",
        "system reward",
        "tokens steered",
    ):
        assert heading in table
    assert "reward.reference" not in table


def test_inspect_shows_a_term(named: list[str]) -> None:
    report = json.loads(shown("inspect", "--json", *named))
    assert [member["name"] for member in report["members"]] == ["base", "chat.tuned", "chat.reference", "reward.tuned"]


def test_chat_turns_numbers_schedules_and_prompt_pairs(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    pair = PromptPair(negative={"system": "be long"}, weight=0.5)
    with engine:
        session = ChatSession(
            engine, SAMPLING, {**engine.weights, "brief": 0.5}, formula=CompositionOptions(prompt_pairs={"brief": pair})
        )
        assert session.command("/weight 0.25") == "chat=0.25, reward=0.25, brief=0.5"
        said = session.command(f"/weight brief=1 chat={GATE}")
        assert said == "chat=gate(by='base_entropy', above=3, weight=1, otherwise=0), reward=0.25, brief=1"
        session.answer("hello")
        with pytest.raises(UnknownPairError):
            session.command("/weight other=1")
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        (["-w", "chat={}"], "pair 'chat' must be a finite number or a schedule"),
        (["-w", 'chat={"kind": "gate"}'], "by"),
        (["--prompt-pair", "brief"], "NAME=JSON"),
        (["--prompt-pair", "brief=[1]"], "NAME=JSON"),
        (["--prompt-pair", "brief={}"], "needs a side"),
        (["--prompt-pair", 'system={"negative": "x"}', "--negative", "y"], "call the other one otherwise"),
        (["--min-plausibility", "2"], "min_plausibility"),
        (["--tuned-plausibility", "2"], "tuned_plausibility"),
        (["--term", "reward"], "NAME=MODEL"),
        (["--term", "chat=x"], "'chat' is a pair already"),
    ],
)
def test_mistakes_are_named(named: list[str], options: list[str], phrase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eft_engine.cli.trio_options.load_engine", lambda choice: pytest.fail("nothing may be loaded"))
    with pytest.raises(Exception, match=phrase):
        CliRunner().invoke(app, ["generate", "x", *named, *options], catch_exceptions=False)


def test_weights_in_one_line_keep_json_whole() -> None:
    assert split_weights(f"a=1,b={GATE} c=2") == ["a=1", f"b={GATE}", "c=2"]
    assert parse_weights([GATE]) == Gate(by="base_entropy", above=3.0)
    with pytest.raises(InvalidOptionError, match="NAME=NUMBER"):
        parse_weights(["a=1", GATE])


def test_serve_makes_the_same_composition_of_flags() -> None:
    made = composition(
        "m", "large", None, None, ["chat=a,b"], None, [f"chat={GATE}", "brief=0.5"],
        terms=["reward=c"], prompt_pairs=['brief={"negative": {"system": "x"}}'], min_plausibility=0.1,
        tuned_plausibility=0.2,
    )  # fmt: skip
    assert made == {
        "name": "m",
        "base": "large",
        "preset": None,
        "pairs": {"chat": {"tuned": "a", "reference": "b"}, "reward": {"model": "c"}},
        "weights": {"chat": json.loads(GATE), "brief": 0.5},
        "prompt_pairs": {"brief": {"negative": {"system": "x"}}},
        "composition": {"min_plausibility": 0.1, "tuned_plausibility": 0.2},
    }
