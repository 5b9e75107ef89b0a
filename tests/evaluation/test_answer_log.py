"""Answers that are kept: what is asked again, what is not, and what a folder refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eft_engine.config import CompositionOptions, EngineConfig, MemberConfig, PromptPair, SamplingParams, TunedPair
from eft_engine.engine.engine import Engine
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.answer_log import open_log
from eft_engine.evaluation.identity import PART_BYTES, WHOLE_BYTES, digest, facts_of
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.report import write_report
from eft_engine.evaluation.run import Evaluation, WeightResult, evaluate
from eft_engine.evaluation.scorers import ExactMatch, Judge, PatternMatch
from eft_engine.evaluation.settings import Setting
from eft_engine.weights import Gate
from tests.toy import ToyTrio, wait_until_idle

QUESTIONS = [Question(prompt=text, answers=["never said"]) for text in ("one", "two two", "three", "four")]
SAMPLING = SamplingParams(temperature=0.0, max_tokens=4)
SETTINGS: list[Any] = [0.0, {"chat": Gate(by="kl", above=0.1)}]


class LeftError(Exception):
    """The caller has had enough."""


def asked(engine: Engine, folder: Path, **others: Any) -> list[WeightResult]:
    """An evaluation whose answers are kept."""
    options: dict[str, Any] = {"scorers": [ExactMatch()], "weights": SETTINGS, "sampling": SAMPLING}
    options |= {"members": ["chat.tuned"]} | others
    with open_log(folder, {"max_tokens": 4}) as log:
        return evaluate(engine, options.pop("questions", QUESTIONS), log=log, **options)


def num_finished(engine: Engine) -> int:
    wait_until_idle(engine)
    return engine.stats().num_finished


def test_what_was_answered_is_not_asked_again_and_is_the_same(toy_trio: ToyTrio, tmp_path: Path) -> None:
    with toy_trio.engine() as engine:
        first = asked(engine, tmp_path)
        write_report(tmp_path, QUESTIONS, first)
        before = num_finished(engine)
        again = asked(engine, tmp_path)
        assert num_finished(engine) == before
    assert again == first
    assert [own.label for own in first] == ["0", "chat=gate(by=kl, above=0.1)", "chat.tuned"]
    assert all(own.tokens_per_s for own in again)
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["question"] for line in lines] == [question.prompt for question in QUESTIONS] * 3


def test_a_member_alone_answers_as_the_model_by_itself(toy_trio: ToyTrio) -> None:
    tuned = ToyTrio(toy_trio.tuned, toy_trio.tuned, toy_trio.reference, toy_trio.tokenizer)
    options: dict[str, Any] = {"scorers": [ExactMatch()], "sampling": SAMPLING}
    with toy_trio.engine() as engine:
        (alone,) = evaluate(engine, QUESTIONS, weights=[], members=["chat.tuned"], **options)
    with tuned.engine() as engine:
        (expected,) = evaluate(engine, QUESTIONS, weights=[0.0], **options)
    assert [own.token_ids for own in alone.answers] == [own.token_ids for own in expected.answers]
    assert alone.member == "chat.tuned"


def test_an_evaluation_that_was_left_goes_on_and_its_speed_is_of_what_was_timed(
    toy_trio: ToyTrio, tmp_path: Path
) -> None:
    """It is left behind the third answer; a line is torn besides."""

    def leave(setting: Setting, done: int, total: int) -> None:
        if done == 3:
            raise LeftError

    with toy_trio.engine() as engine:
        expected = asked(engine, tmp_path / "whole")
        with pytest.raises(LeftError):
            asked(engine, tmp_path / "left", members=[], on_progress=leave)
        assert num_finished(engine) + engine.stats().num_cancelled >= 15
        with (tmp_path / "left" / "answers.jsonl").open("ab") as file:
            file.write(b'{"weights": "0", "question": "fo')
        before = num_finished(engine)
        found = asked(engine, tmp_path / "left")
        assert num_finished(engine) == before + 12 - 3
    for own, other in zip(found, expected, strict=True):
        assert [answer.token_ids for answer in own.answers] == [answer.token_ids for answer in other.answers]
    assert [own.timing.num_answers for own in found] == [1, 4, 4]
    assert [own.tokens_per_s is None for own in found] == [True, False, False]


def test_what_a_caller_leaves_is_cancelled(toy_trio: ToyTrio) -> None:
    def leave() -> None:
        raise LeftError

    with toy_trio.engine() as engine:
        long = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
        with pytest.raises(LeftError):
            evaluate(engine, QUESTIONS, scorers=[ExactMatch()], weights=[0.0], sampling=long, on_wait=leave)
        wait_until_idle(engine)
        assert engine.stats().num_cancelled > 0


def test_an_answer_stays_when_its_scorer_fails_and_other_scorers_mark_it_anew(
    toy_trio: ToyTrio, tmp_path: Path
) -> None:
    class Mute:
        def invoke(self, prompt: str) -> str:
            return "perhaps"

    with toy_trio.engine() as engine:
        with pytest.raises(InvalidOptionError, match="must reply yes or no"):
            asked(engine, tmp_path, scorers=[Judge(Mute())], members=[], weights=[0.0])
        before = num_finished(engine)
        assert len((tmp_path / "answers.jsonl").read_bytes().splitlines()) == 1
        (found,) = asked(engine, tmp_path, scorers=[PatternMatch("(?s).*")], members=[], weights=[0.0])
        assert num_finished(engine) == before + 3
        assert found.marks == {"regex": [True] * 4}
        changed = [question.model_copy(update={"answers": [found.answers[0].text]}) for question in QUESTIONS]
        (again,) = asked(engine, tmp_path, questions=changed, members=[], weights=[0.0])
        assert num_finished(engine) == before + 3
    assert again.marks["exact"][0]


def test_an_evaluation_tells_of_what_is_there_without_asking(toy_trio: ToyTrio, tmp_path: Path) -> None:
    with toy_trio.engine() as engine:
        asked(engine, tmp_path, questions=QUESTIONS[1:3], weights=[0.0], members=[])
        with open_log(tmp_path, {"max_tokens": 4}) as log:
            evaluation = Evaluation(engine, QUESTIONS, scorers=[ExactMatch()], sampling=SAMPLING, log=log)
            found = evaluation.so_far(Setting(0.0))
    assert found.places == [1, 2]


def test_a_folder_of_other_answers_is_refused_with_what_differs(tmp_path: Path) -> None:
    open_log(tmp_path, {"max_tokens": 4, "old": 1}).close()
    with pytest.raises(InvalidOptionError) as caught:
        open_log(tmp_path, {"max_tokens": 5, "new": None, "list": [1]})
    told = str(caught.value).splitlines()
    assert told[1:4] == [
        "  max_tokens: 4 then, 5 now",
        "  old: 1 then, not there now",
        "  list: not there then, [1] now",
    ]
    assert "discard them with --fresh, or name another folder" in told[-1]
    open_log(tmp_path, {"max_tokens": 5}, fresh=True).close()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("answers.jsonl", '{"weights": "0"}\n', "and no run.json that says how its answers came about"),
        ("run.json", "{", "run.json cannot be read"),
        ("run.json", '{"format": 0, "facts": {}, "timings": {}}', "format 0, not 1"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InvalidOptionError, match=told):
        open_log(tmp_path, {})
    open_log(tmp_path, {}, fresh=True).close()


def test_a_line_that_is_no_answer_is_named(toy_trio: ToyTrio, tmp_path: Path) -> None:
    with toy_trio.engine() as engine:
        asked(engine, tmp_path, weights=[0.0], members=[])
    with (tmp_path / "answers.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"weights": "0"}\n')
    with pytest.raises(InvalidOptionError, match=r"answers\.jsonl, line 5 is no answer of an evaluation"):
        open_log(tmp_path, {"max_tokens": 4})


def test_two_evaluations_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with open_log(tmp_path, {}), pytest.raises(InvalidOptionError, match="another evaluation writes into"):
        open_log(tmp_path, {})
    open_log(tmp_path, {}).close()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InvalidOptionError, match="cannot write the report to"):
        open_log(tmp_path / "file" / "report", {})


def facts(base: MemberConfig, **others: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"config": EngineConfig(), "sampling": SAMPLING, "composition": CompositionOptions()}
    options |= others
    return facts_of(base, {"chat": TunedPair("org/tuned", "org/reference")}, options.pop("config"), **options)


def test_what_decides_an_answer_is_a_fact_and_what_decides_its_speed_is_none(tmp_path: Path) -> None:
    base = MemberConfig(source=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    known = facts(base)
    assert json.loads(json.dumps(known)) == known
    (tmp_path / "loss.png").write_bytes(b"a curve")
    (tmp_path / "report.json").write_text("{}", encoding="utf-8")
    assert facts(base, config=EngineConfig(max_num_seqs=3, self_check=False)) == known
    moved = shutil.copytree(tmp_path, tmp_path.with_name("moved") / tmp_path.name)
    assert facts(MemberConfig(source=str(moved))) == known
    others: list[dict[str, Any]] = [
        {"config": EngineConfig(dtype="bfloat16")},
        {"sampling": SamplingParams(temperature=0.0, max_tokens=5)},
        {"composition": CompositionOptions(prompt_pairs={"brief": PromptPair(positive={"system": "Be brief."})})},
    ]
    for other in others:
        assert facts(base, **other) != known
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    assert facts(base) != known


def test_of_a_large_file_every_stretch_counts(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    content = bytearray(WHOLE_BYTES + 10 * PART_BYTES)
    path.write_bytes(content)
    before = digest(path)
    for place in (0, len(content) - 1):
        changed = bytearray(content)
        changed[place] = 1
        path.write_bytes(changed)
        assert digest(path) != before
    path.write_bytes(content + b"\0")
    assert digest(path) != before
