"""Question files: what a line may hold, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.questions import Question, load_questions


def test_the_three_forms_become_prompts() -> None:
    assert Question(question="Hi?").as_prompt() == [{"role": "user", "content": "Hi?"}]
    assert Question(prompt="Q: Hi?\nA:").as_prompt() == "Q: Hi?\nA:"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    asked = Question(messages=turns)
    assert asked.as_prompt() == turns
    assert asked.text() == "Hi?"


@pytest.mark.parametrize("fields", [{}, {"question": "a", "prompt": "b"}, {"question": "a", "messages": []}])
def test_a_question_has_exactly_one_form(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="one of question, messages and prompt"):
        Question.model_validate(fields)


def test_empty_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "a", "answers": ["b"]}\n\n{"prompt": "c", "group": "plain"}\n', encoding="utf-8")
    assert [(q.text(), q.answers, q.group) for q in load_questions(path)] == [("a", ["b"], "all"), ("c", [], "plain")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "a"}\nnot json\n', "line 2 is not a question"),
        ('{"question": "a", "answer": "b"}\n', "answer: Extra inputs"),
        ('{"answers": ["b"]}\n', "one of question, messages and prompt"),
        ("\n", "holds no questions"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidOptionError, match=message):
        load_questions(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match=r"cannot read the question file .*none\.jsonl"):
        load_questions(tmp_path / "none.jsonl")
