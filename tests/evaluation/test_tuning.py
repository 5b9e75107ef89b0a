"""Finding a weight: who goes on, who is taken, what is warned of; and on a toy trio, what was asked and counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from eft_engine.config import CompositionOptions, EngineConfig, SamplingParams, TokenIds
from eft_engine.engine.engine import Engine
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.run import Weights, evaluate, label_of
from eft_engine.evaluation.scorers import ExactMatch, PatternMatch
from eft_engine.evaluation.tuning import Round, Tuning, num_answers, plan_rounds, tune
from eft_engine.outputs import RequestMetrics, RequestOutput, ScoreOutput, TokenScore, Usage
from eft_engine.weights import FirstTokens, Gate
from tests.toy import ToyTrio

SAMPLING = SamplingParams(temperature=0.0, max_tokens=4)
FORM = PatternMatch(r"\{.*\}", name="form")
FACTS = ExactMatch(anywhere=True, name="facts")
NUM_TOKENS = 10


@dataclass
class TableEngine:
    """At every weight the first questions are answered in form and rightly, as many of a hundred as a table says.

    `table` has by label: answers in form, right ones, steered tokens of ten, changed tokens of ten.
    """

    table: dict[str, tuple[int, int, int, int]]
    asked: dict[str, int] = field(default_factory=dict)
    last: str = ""

    config: EngineConfig = field(default_factory=EngineConfig)

    async def agenerate(
        self, prompt: Any, *, reward_weights: Any, composition: CompositionOptions | None, **_: Any
    ) -> RequestOutput:
        label = (composition and composition.member) or label_of(reward_weights)
        self.asked[label] = self.asked.get(label, 0) + 1
        return self._answer(label, int(prompt))

    def _answer(self, label: str, number: int) -> RequestOutput:
        formed, right, steered, changed = self.table[label]
        word = "yes" if number % 100 < right else "no"
        return RequestOutput(
            request_id="",
            text=f"{{{word}}}" if number % 100 < formed else word,
            token_ids=(*[1] * changed, *[0] * (NUM_TOKENS - changed)),
            finish_reason="stop",
            stop_reason=None,
            usage=Usage(prompt_tokens=1, completion_tokens=NUM_TOKENS),
            metrics=cast(RequestMetrics, None),
            reward_weights={},
            intervention_rate=steered / NUM_TOKENS,
        )

    def score(self, prompt: Any, completion: Any, **_: Any) -> ScoreOutput:
        """The base writes no token but 0."""
        tokens = [TokenScore(own, "", 0.0, 0.0, {}, is_base_greedy=own == 0) for own in completion.ids]
        return ScoreOutput(tuple(tokens), {})


def found(
    table: dict[str, tuple[int, int, int, int]], candidates: list[Any], **options: Any
) -> tuple[Tuning, TableEngine]:
    """What tuning finds among a hundred questions."""
    engine = TableEngine(table)
    questions = [Question(prompt=str(number), answers=["yes"]) for number in range(100)]
    result = tune(
        cast(Engine, engine), questions, scorers=[FORM, FACTS], sampling=SAMPLING, candidates=candidates, **options
    )
    return result, engine


def test_the_form_that_costs_no_facts_is_taken() -> None:
    table = {"0": (0, 90, 0, 0), "0.5": (80, 90, 10, 1), "1": (100, 89, 10, 1), "2": (100, 70, 10, 1)}
    tuning, _ = found(table, [0.5, 1.0, 2.0])
    assert tuning.best.label == "1"
    assert [own.label for own in tuning.results] == ["0", "1", "0.5", "2"]
    (told,) = [warning for warning in tuning.warnings if "falls" in warning]
    assert told.startswith("2: facts falls from 90.0% ")


def test_with_no_loss_allowed_the_weight_that_loses_nothing_is_taken() -> None:
    table = {"0": (0, 90, 0, 0), "0.5": (80, 90, 10, 1), "1": (100, 89, 10, 1)}
    assert found(table, [0.5, 1.0], tolerance=0.0)[0].best.label == "0.5"


def test_where_every_candidate_loses_facts_the_base_alone_is_taken_and_it_is_said() -> None:
    tuning, _ = found({"0": (0, 90, 0, 0), "1": (100, 40, 10, 5)}, [1.0])
    assert tuning.best.label == "0"
    assert any("nothing that was tried is better than weight 0" in warning for warning in tuning.warnings)


def test_of_equals_the_one_that_steers_fewer_tokens_is_taken_then_the_smaller_weight() -> None:
    gate = Gate(by="kl", above=0.5)
    table = {"0": (0, 90, 0, 0), "0.5": (90, 90, 10, 1), "1": (90, 90, 10, 1), label_of(gate): (90, 90, 4, 1)}
    assert found(table, [1.0, 0.5, gate])[0].best.weights == gate
    assert found(table, [1.0, 0.5])[0].best.weights == 0.5


def test_half_of_the_candidates_go_on_and_nobody_is_asked_a_question_twice() -> None:
    weights = [float(number) for number in range(1, 9)]
    table = {label_of(own): (int(10 * own), 90, 10, 1) for own in [0.0, *weights]}
    progress: dict[str, list[int]] = {}
    tuning, engine = found(
        table, weights, on_progress=lambda own, done, _: progress.setdefault(own.name, []).append(done)
    )
    assert plan_rounds(8, 100) == [Round(8, 25), Round(4, 50), Round(2, 100)]
    assert engine.asked == {"0": 100, "8": 100, "7": 100, "6": 50, "5": 50, "4": 25, "3": 25, "2": 25, "1": 25}
    assert tuning.finalists == ("0", "8", "7")
    assert [len(own.answers) for own in tuning.results] == [100, 100, 100, 50, 50, 25, 25, 25, 25]
    assert sorted(int(str(own.prompt)) for own in tuning.questions) == list(range(100))
    assert sum(max(done) for done in progress.values()) == num_answers(8, 100) == 500
    assert all(done == sorted(done) for done in progress.values())


@pytest.mark.parametrize(("changed", "is_warned"), [(2, False), (3, True)])
def test_many_changed_tokens_are_warned_of(changed: int, is_warned: bool) -> None:
    tuning, _ = found({"0": (0, 90, 0, 0), "1": (100, 90, 10, changed)}, [1.0])
    assert tuning.best.changed is not None
    assert tuning.best.changed.value == changed / NUM_TOKENS
    assert any("would have written" in warning for warning in tuning.warnings) == is_warned


def test_candidates_are_some_and_differ() -> None:
    for candidates, message in (([], "name a candidate"), ([1.0, 1], "the candidate 1 is given twice")):
        with pytest.raises(InvalidOptionError, match=message):
            found({}, candidates)


def test_on_a_trio_answers_are_those_of_an_evaluation_and_changed_tokens_are_not_the_bases(toy_trio: ToyTrio) -> None:
    questions = [Question(prompt=text) for text in ("one", "two two", "three")]
    scorers = [PatternMatch("(?s).*")]
    candidates: list[Weights] = [1.0, FirstTokens(num_tokens=2, weight=2.0)]
    with toy_trio.engine() as engine:
        tuning = tune(engine, questions, scorers=scorers, sampling=SAMPLING, candidates=candidates)
        for own in tuning.results:
            (expected,) = evaluate(engine, questions, scorers=scorers, weights=[own.weights], sampling=SAMPLING)
            tokens = {answer.token_ids for answer in expected.answers}
            assert {answer.token_ids for answer in own.answers} == tokens
            changed = [_num_changed(engine, question, own.weights) for question in questions]
            assert own.changed is not None
            assert own.changed.hits == sum(changed)
    assert sorted(str(own.prompt) for own in tuning.questions) == ["one", "three", "two two"]
    assert tuning.best.label == "0"  # all that was asked is there without any weight
    assert tuning.results[0].steered == 0.0
    assert {round(own.steered, 2) for own in tuning.results[1:]} == {1.0, 0.5}


def _num_changed(engine: Engine, question: Question, weights: Any) -> int:
    """One token after the other, the base is asked what it would write behind the same text."""
    prompt = engine.tokenizer.encode(str(question.prompt), add_special_tokens=True)
    written = engine.generate(str(question.prompt), sampling=SAMPLING, reward_weights=weights).token_ids
    count = 0
    for place, token in enumerate(written):
        behind = TokenIds(ids=tuple(prompt) + written[:place])
        one = SAMPLING.model_copy(update={"max_tokens": 1})
        count += engine.generate(behind, sampling=one, reward_weights=0.0).token_ids[0] != token
    return count
