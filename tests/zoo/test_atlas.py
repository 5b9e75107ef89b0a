"""Atlas as it is shipped: it answers, in the form of the tuned model, what its base knows."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from eft_engine import Engine, SamplingParams, load_preset
from eft_engine.evaluation.questions import load_questions
from eft_engine.zoo.atlas import QUESTION_FILES, has_form, load_fact_questions
from eft_engine.zoo.presets import ZOO
from eft_integrations.backends.pool import shared_backend
from eft_integrations.chat.messages import Message, Tool
from eft_integrations.chat.request import ChatRequest

GREEDY = SamplingParams(temperature=0.0, max_tokens=40)
NUM_QUESTIONS = 24


@pytest.fixture(scope="module")
def atlas() -> Iterator[Engine]:
    with load_preset("atlas") as engine:
        yield engine


def answers(engine: Engine, weight: float) -> list[str]:
    asked = [[{"role": "user", "content": q.question}] for q in load_fact_questions()[:NUM_QUESTIONS]]
    return [answer.text for answer in engine.generate(asked, sampling=GREEDY, reward_weights=weight)]


def test_up_scaling_brings_the_form_that_the_base_does_not_choose(atlas: Engine) -> None:
    base, up_scaled = answers(atlas, 0.0), answers(atlas, 1.0)
    assert sum(has_form(text, "assistant") for text in up_scaled) >= NUM_QUESTIONS * 0.8
    assert sum(has_form(text, "assistant") for text in base) <= NUM_QUESTIONS * 0.5


def test_up_scaling_knows_more_than_the_tuned_model(atlas: Engine) -> None:
    expected = [q.answer for q in load_fact_questions()[:NUM_QUESTIONS]]
    with Engine.load(str(ZOO / "atlas" / "assistant")) as small:
        known_small = sum(e in text for e, text in zip(expected, answers(small, 1.0), strict=True))
    known = sum(e in text for e, text in zip(expected, answers(atlas, 1.0), strict=True))
    assert known > known_small
    assert known >= NUM_QUESTIONS * 0.5


def test_up_scaling_answers_from_passages_that_the_base_was_never_shown(atlas: Engine) -> None:
    questions = load_questions(QUESTION_FILES["reading"])[:NUM_QUESTIONS]
    found = atlas.generate([question.as_prompt() for question in questions], sampling=GREEDY)
    assert sum(q.answers[0] in answer.text for q, answer in zip(questions, found, strict=True)) >= NUM_QUESTIONS * 0.7
    assert sum(has_form(answer.text, "assistant") for answer in found) >= NUM_QUESTIONS * 0.8


def test_up_scaling_calls_the_tool_that_was_asked_for() -> None:
    backend = shared_backend(preset="atlas")
    lines = QUESTION_FILES["tools"].read_text(encoding="utf-8").splitlines()[:NUM_QUESTIONS]
    num_right = 0
    for asked in map(json.loads, lines):
        tools = tuple(Tool(**tool["function"]) for tool in asked["tools"])
        request = ChatRequest(
            messages=(Message("user", asked["question"]),), tools=tools, sampling={"temperature": 0.0, "max_tokens": 64}
        )
        calls = backend.chat(request).tool_calls
        right = [(asked["call"]["name"], asked["call"]["arguments"])]
        num_right += [(call.name, json.loads(call.arguments)) for call in calls] == right
    assert num_right >= NUM_QUESTIONS * 0.7


def test_two_styles_share_one_base() -> None:
    with load_preset("atlas-styles") as engine:
        asked = [{"role": "user", "content": load_fact_questions()[0].question}]
        for name, other in (("brief", "detailed"), ("detailed", "brief")):
            text = engine.generate(asked, sampling=GREEDY, reward_weights={name: 1.0, other: 0.0}).text
            assert has_form(text, name)


def test_question_files_hold_what_eval_reads() -> None:
    assert len(load_questions(QUESTION_FILES["facts"])) >= 500
    assert len(load_questions(QUESTION_FILES["reading"])) == 200


def test_all_members_together_are_small() -> None:
    assert sum(path.stat().st_size for path in (ZOO / "atlas").rglob("*") if path.is_file()) < 30_000_000


def test_the_origin_of_the_facts_is_named_beside_the_weights() -> None:
    notice = (ZOO / "atlas" / "NOTICE.md").read_text(encoding="utf-8")
    assert "GeoNames" in notice
    assert "CC-BY 4.0" in notice
