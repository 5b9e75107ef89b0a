"""An evaluation of a toy trio: every weight is asked, and the report says what was counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eft_engine.config import Regex, SamplingParams
from eft_engine.engine.engine import Engine
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.report import summary, write_report
from eft_engine.evaluation.run import WeightResult, evaluate
from eft_engine.evaluation.scorers import ExactMatch, PatternMatch, SchemaMatch
from tests.toy import ToyTrio

QUESTIONS = [
    Question(prompt="one", answers=["never said"], group="first"),
    Question(prompt="two two", answers=["never said"], group="second"),
]
SAMPLING = SamplingParams(temperature=0.0, max_tokens=4)


@pytest.fixture(scope="module")
def results(toy_trio: ToyTrio) -> list[WeightResult]:
    """Two weights, one scorer that every answer passes and one that none passes."""
    with toy_trio.engine() as engine:
        return evaluate(
            engine,
            QUESTIONS,
            scorers=[PatternMatch("(?s).*"), ExactMatch()],
            weights=[0.0, {"chat": 1.0}],
            sampling=SAMPLING,
        )


def test_answers_are_those_of_the_engine_at_that_weight(toy_trio: ToyTrio, results: list[WeightResult]) -> None:
    with toy_trio.engine() as engine:
        assert isinstance(engine, Engine)
        for result, weight in zip(results, (0.0, 1.0), strict=True):
            expected = engine.generate(["one", "two two"], sampling=SAMPLING, reward_weights=weight)
            assert [a.token_ids for a in result.answers] == [a.token_ids for a in expected]


def test_shares_are_counted_by_scorer_and_group(results: list[WeightResult]) -> None:
    for result in results:
        assert (result.share("regex").hits, result.share("regex").total) == (2, 2)
        assert result.share("exact").hits == 0
        assert result.share("regex", group="second").total == 1


def test_summary_names_every_weight(results: list[WeightResult]) -> None:
    found = json.loads(json.dumps(summary(results)))
    assert list(found["weights"]) == ["0", "chat=1"]
    assert found["weights"]["0"]["regex"]["share"] == 1.0
    assert found["weights"]["chat=1"]["mean_tokens"] <= 4
    for result, own in zip(results, found["weights"].values(), strict=True):
        assert own["cut"]["share"] == sum(answer.finish_reason == "length" for answer in result.answers) / 2


def test_value_that_was_cut_is_no_json_of_a_schema(toy_trio: ToyTrio) -> None:
    """The first digits of a number are one too. The grammar holds the answers to numbers, of which a long one is cut."""
    for digits, hits in ((8, 0), (2, 2)):
        with toy_trio.engine() as engine:
            sampling = SAMPLING.model_copy(update={"grammar": Regex(pattern=f"[1-9]{{{digits}}}")})
            questions = [Question(prompt="one"), Question(prompt="two")]
            scorers = [SchemaMatch({"type": "integer"}), PatternMatch("[0-9]+")]
            (result,) = evaluate(engine, questions, scorers=scorers, weights=[1.0], sampling=sampling)
        assert result.share("schema").hits == hits
        assert result.share("regex").hits == 2
        assert result.cut.hits == 2 - hits


def test_report_holds_tables_answers_and_a_plot(results: list[WeightResult], tmp_path: Path) -> None:
    report, answers, plot = write_report(tmp_path / "out", QUESTIONS, results)
    text = report.read_text(encoding="utf-8")
    assert "| chat=1 | 100.0% [34.2%, 100.0%] | 0.0% [0.0%, 65.8%] |" in text
    assert "## regex by group" in text
    lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert [(line["weights"], line["question"], line["regex"]) for line in lines][2] == ("chat=1", "one", True)
    assert plot.read_bytes().startswith(b"\x89PNG")
