"""The small model before and after, on held-out questions."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from eft_engine import Engine, load_preset
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.scorers import PatternMatch
from eft_engine.zoo.atlas.behaviour import ASSISTANT_FORM
from eft_engine.zoo.atlas.held_out import load_fact_questions
from eft_tuning.behaviour import measure_behaviour
from eft_tuning.chats import Chat
from eft_tuning.outline import Outline


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with load_preset("atlas") as own:
        yield own


def rows(count: int) -> list[Chat]:
    return [
        Chat(
            [
                {"role": "user", "content": own.question},
                {"role": "assistant", "content": f"The {own.group} is {own.answer}. Source: memory."},
            ],
            n,
        )
        for n, own in enumerate(load_fact_questions()[:count], start=1)
    ]


def test_tuned_and_reference_stand_side_by_side(engine: Engine) -> None:
    chats, seen = rows(24), list[tuple[int, int]]()
    report = measure_behaviour(
        engine,
        chats[16:],
        train=chats[:16],
        pair="assistant",
        form=PatternMatch(ASSISTANT_FORM, name="source"),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert (report.num_rows, report.measure) == (8, "source")
    assert report.tuned.form.hits >= 7
    assert report.reference.form.hits <= 1
    assert report.tuned.ends.value > report.reference.ends.value
    assert seen[-1] == (16, 16)
    assert report.examples[0].question == chats[16].question
    assert "Source: memory." in report.examples[0].tuned
    told = "\n".join(report.in_words())
    assert f"tuned: in form {report.tuned.form}" in told
    assert json.loads(json.dumps(report.as_json()))["tuned"]["form"]["n"] == 8


def test_without_a_measure_answers_must_look_like_those_of_the_file(engine: Engine) -> None:
    chats = rows(20)
    report = measure_behaviour(engine, chats[16:], train=chats[:16], pair="assistant", most_rows=3)
    assert report.num_rows == 3
    assert report.outline.ends == ". Source: memory."
    assert report.tuned.form.hits == 3
    assert report.reference.form.hits == 0
    assert "ends with '. Source: memory.'" in report.measure


def test_rows_that_cannot_be_asked_are_an_error(engine: Engine) -> None:
    with_tools = [Chat(chat.messages, chat.line, tools=[{"function": {"name": "f"}}]) for chat in rows(3)]
    with pytest.raises(InvalidOptionError, match="no held-out row can be asked"):
        measure_behaviour(engine, with_tools, train=rows(3), pair="assistant")


@pytest.mark.parametrize(
    ("answers", "good", "bad"),
    [
        (
            ['{"a": 1}', '{"a": 22}', '{"a": 3}', '{"a": 40}'],
            ['{"a": 7}'],
            ['{"b": 7}', '{"a": 7', "7", '{"a": 1}\n{"a": 2}'],
        ),
        (["Yes.", "No.", "Never.", "Maybe."], ["Always."], ["", "Yes", "I would say that this is a long answer."]),
        (["a\nb", "c\nd", "e\nf"], ["x\ny"], ["x\ny\nz", "x" * 50]),
    ],
)
def test_outlines(answers: list[str], good: list[str], bad: list[str]) -> None:
    outline = Outline.of(answers)
    question = Question(question="Hi?")
    assert [outline.score(question, text) for text in [*answers, *good]] == [True] * (len(answers) + len(good))
    assert [outline.score(question, text) for text in bad] == [False] * len(bad)


def test_an_outline_of_nothing_is_an_error() -> None:
    with pytest.raises(InvalidOptionError, match="no answers whose form"):
        Outline.of([" "])
