"""Question files: what a line may hold, and what wrong ones say, all of them at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.question_file import read_questions
from eft_engine.evaluation.questions import Question, load_questions
from eft_engine.evaluation.scorers import ExactMatch, PatternMatch


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "q.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(folder: Path, content: str | bytes) -> str:
    """What a file's error says."""
    with pytest.raises(InvalidOptionError) as caught:
        load_questions(written(folder, content))
    return str(caught.value)


def test_the_three_forms_become_prompts() -> None:
    assert Question(question="Hi?").as_prompt() == [{"role": "user", "content": "Hi?"}]
    assert Question(prompt="Q: Hi?\nA:").as_prompt() == "Q: Hi?\nA:"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    asked = Question(messages=turns)
    assert asked.as_prompt() == turns
    assert asked.text() == "Hi?"


@pytest.mark.parametrize(
    "fields",
    [{}, {"question": "a", "prompt": "b"}, {"question": "a", "messages": [{"role": "user", "content": "b"}]}],
)
def test_a_question_has_exactly_one_form(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="one of question, messages and prompt"):
        Question.model_validate(fields)


def test_empty_lines_a_mark_and_ends_of_lines_do_not_matter(tmp_path: Path) -> None:
    content = '\ufeff{"question": "a", "answers": ["b"]}\r\n\r\n{"prompt": "c\u2028d", "group": "plain"}\r\n'
    read = read_questions(written(tmp_path, content))
    assert [(q.text(), q.answers, q.group) for q in read.questions] == [("a", ["b"], "all"), ("c\u2028d", [], "plain")]
    assert read.lines == (1, 3)


def message(*turns: dict[str, Any]) -> str:
    return json.dumps({"messages": turns})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"question": "a"}\nnot json\n', "line 2: is not JSON (Expecting value at column 1)"),
        ('{"question": "a", "answer": "b"}', "line 1: 'answer' is no field of a question; did you mean 'answers'?"),
        ('{"question": "a", "zz": "b"}', "'zz' is no field of a question; fields are question, messages,"),
        ('{"answers": ["b"]}', "line 1: asks nothing; give one of question, messages and prompt"),
        ('{"question": "a", "prompt": "b"}', "has question and prompt; give one"),
        ('{"question": "a", "question": "b"}', "line 1: 'question' is given twice"),
        ('{"question": " "}', "question is empty; write what is asked"),
        ('{"question": "a", "answers": "b"}', "answers must be a list, got 'b'; put it in brackets"),
        ('{"question": "a", "answers": [7]}', "answers.0 must be text, got 7; put it in quotes"),
        ('{"question": "a", "answers": ["b", ""]}', "answers number 2 is empty"),
        ('{"question": "a", "pattern": "("}', "pattern is not a regular expression (missing ), unterminated"),
        ('["a"]\n["b"]', "lines 1, 2: is list, not an object"),
        (message(), "messages holds no turns"),
        (message({"role": "human", "content": "a"}), "turn 1 has the role 'human'; roles are system,"),
        (message({"role": "user", "content": " "}), "turn 1 (user) is empty"),
        (message({"role": "user"}), "turn 1 (user) needs content that is text, got None"),
        (
            message({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
            "ends with a turn of assistant",
        ),
        ("\n", "holds no questions; a line looks like"),
        ('[{"question": "a"},\n {"question": "b"}]', "is one JSON array, and must have one object a line: jq -c '.[]'"),
        ('{\n"question": "a"\n}', "is one JSON object over several lines"),
        ('{"question": "caf\xe9"}'.encode("latin-1"), "line 1: is not UTF-8 (byte e9)"),
        ('{"question": "a"}'.encode("utf-16"), "is UTF-16, as some editors save text; save it as UTF-8"),
    ],
)
def test_a_wrong_file_is_told_by_its_line(tmp_path: Path, content: str | bytes, told: str) -> None:
    assert told in refusal(tmp_path, content)


def test_all_that_is_wrong_is_told_at_once_and_the_same_thing_once(tmp_path: Path) -> None:
    lines = ['{"question": "a", "answer": "b"}'] * 12 + ["{}", '{"question": "a"}', '{"question": "", "pattern": "["}']
    told = refusal(tmp_path, "\n".join(lines)).splitlines()
    assert told[0].endswith("q.jsonl: 14 lines are not questions that can be asked")
    assert told[1].startswith("  lines 1, 2, 3, 4, 5, 6, 7, 8, ... (12 lines): 'answer' is no field")
    assert [line.partition(":")[0] for line in told[2:]] == ["  line 13", "  line 15", "  line 15"]


def test_a_file_of_nothing_but_mistakes_is_told_in_few_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"question": "a", f"field {number}": 1}) for number in range(100)]
    told = refusal(tmp_path, "\n".join(lines)).splitlines()
    assert len(told) == 22
    assert told[-1] == "  and 80 more"


def test_what_scorers_need_is_looked_for_in_every_line(tmp_path: Path) -> None:
    content = '{"prompt": "a", "answers": ["b"]}\n{"prompt": "b"}\n{"prompt": "c", "answers": ["+"]}\n'
    read = read_questions(written(tmp_path, content))
    with pytest.raises(InvalidOptionError) as caught:
        read.check_for([ExactMatch(), PatternMatch()])
    told = str(caught.value)
    assert "line 2: has no answers to compare with; add answers" in told
    assert "line 3: answers: '+' has no letters or digits" in told
    assert "lines 1, 2, 3: has no pattern, and none was given for all" in told
    read.first(1).check_for([ExactMatch()])
    read.check_for([PatternMatch("b")])


def test_what_is_asked_twice_is_warned_of(tmp_path: Path) -> None:
    content = "\n".join(
        [
            '{"question": "a", "answers": ["b"]}',
            '{"prompt": "a", "answers": ["b"]}',
            '{"question": "a", "answers": ["c"]}',
            '{"messages": [{"role": "user", "content": "a"}], "answers": ["b"]}',
        ]
    )
    (told,) = read_questions(written(tmp_path, content)).warnings
    assert told == "lines 1, 3, 4 ask the same with different answers: 'a'"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match=r"cannot read the question file .*none\.jsonl"):
        load_questions(tmp_path / "none.jsonl")
