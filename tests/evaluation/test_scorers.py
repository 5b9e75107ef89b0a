"""Scorers on answers written by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel

from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.scorers import ExactMatch, Judge, PatternMatch, SchemaMatch, Scorer, scored_by

PARIS = Question(question="What is the capital of France?", answers=["Paris", "City of Light"])


@pytest.mark.parametrize("answer", ["Paris", " paris. ", "the_no", "City of light!"])
def test_exact_match_forgives_case_and_punctuation(answer: str) -> None:
    assert ExactMatch().score(PARIS, answer) is (answer != "the_no")


def test_exact_match_anywhere_wants_whole_words() -> None:
    scorer = ExactMatch(anywhere=True)
    assert scorer.score(PARIS, "The capital is Paris, I think.")
    assert not scorer.score(PARIS, "The Parisians know.")
    assert not ExactMatch().score(PARIS, "The capital is Paris, I think.")


def test_exact_match_needs_expected_answers() -> None:
    with pytest.raises(InvalidOptionError, match="has no answers to compare with"):
        ExactMatch().score(Question(question="Why?"), "Because.")


def test_pattern_must_match_the_whole_answer() -> None:
    scorer = PatternMatch(r"It is \w+\.")
    assert scorer.score(PARIS, "It is Paris.\n")
    assert not scorer.score(PARIS, "It is Paris. Really.")


def test_pattern_compares_its_answer_group_with_the_expected_answers() -> None:
    scorer = PatternMatch(r"It is (?P<answer>\w+)\.")
    assert scorer.score(PARIS, "It is Paris.")
    assert not scorer.score(PARIS, "It is Lyon.")


def test_a_questions_own_pattern_comes_first() -> None:
    question = Question(question="Yes or no?", pattern="yes|no")
    assert PatternMatch("maybe").score(question, "no")
    assert not PatternMatch("maybe").score(question, "maybe")


def test_pattern_errors_say_what_is_missing_or_wrong() -> None:
    with pytest.raises(InvalidOptionError, match="no pattern was given"):
        PatternMatch().score(PARIS, "x")
    with pytest.raises(InvalidOptionError, match="not a regular expression"):
        PatternMatch("(")


def test_schema_accepts_json_of_the_schema_only() -> None:
    scorer = SchemaMatch({"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}})
    assert scorer.score(PARIS, '{"city": "Paris"}')
    assert not scorer.score(PARIS, '{"city": 3}')
    assert not scorer.score(PARIS, "Paris")


def test_schema_must_be_one() -> None:
    with pytest.raises(InvalidOptionError, match="not a JSON schema"):
        SchemaMatch({"type": "nothing"})


def test_a_langchain_chat_model_judges() -> None:
    judge = Judge(FakeListChatModel(responses=["Yes, it is.", "No."]))
    assert judge.score(PARIS, "Paris")
    assert not judge.score(PARIS, "Lyon")


def test_the_judge_reads_question_expected_answers_and_criterion() -> None:
    seen: list[str] = []

    def invoke(prompt: str) -> SimpleNamespace:
        seen.append(prompt)
        return SimpleNamespace(content=[{"type": "text", "text": "yes"}])

    judge = Judge(SimpleNamespace(invoke=invoke), criterion="Is it polite?")
    assert judge.score(PARIS, "Paris, please.")
    for part in (PARIS.question or "", "Paris or City of Light", "Paris, please.", "Is it polite?"):
        assert part in seen[0]


def test_a_judge_that_does_not_decide_is_an_error() -> None:
    with pytest.raises(InvalidOptionError, match="must reply yes or no"):
        Judge(FakeListChatModel(responses=["Perhaps"])).score(PARIS, "Paris")


def test_accents_are_folded_on_request_and_one_letter_is_one_however_it_is_written() -> None:
    bogota = Question(question="What is the capital of Colombia?", answers=["Bogotá"])
    for anywhere in (False, True):
        scorer, folding = ExactMatch(anywhere=anywhere), ExactMatch(anywhere=anywhere, fold_accents=True)
        assert not scorer.score(bogota, "Bogota")
        assert folding.score(bogota, "Bogota")
        assert scorer.score(bogota, "Bogota\u0301")
        assert folding.score(bogota, "BOGOTA\u0301.")
        assert not folding.score(bogota, "Bogot")
    form = r"It is (?P<answer>\w+)\."
    assert PatternMatch(form, fold_accents=True).score(bogota, "It is Bogota.")
    assert not PatternMatch(form).score(bogota, "It is Bogota.")


def test_marks_are_known_by_what_gave_them() -> None:
    def told(*scorers: Scorer, question: Question = PARIS) -> str:
        return scored_by(scorers, question)

    assert told(ExactMatch()) == told(ExactMatch())
    others = [
        told(ExactMatch(fold_accents=True)),
        told(ExactMatch(name="right")),
        told(PatternMatch("a")),
        told(PatternMatch("b")),
        told(SchemaMatch({"type": "object"})),
        told(SchemaMatch({"type": "array"})),
        told(Judge(FakeListChatModel(responses=["yes"]))),
        told(Judge(FakeListChatModel(responses=["yes"]), criterion="Is it polite?")),
        told(ExactMatch(), question=PARIS.model_copy(update={"answers": ["Lyon"]})),
    ]
    assert len({told(ExactMatch()), *others}) == len(others) + 1
    assert told(Judge(FakeListChatModel(responses=["yes"]))) == others[6]
