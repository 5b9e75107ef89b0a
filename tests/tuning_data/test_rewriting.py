"""Answers of a teacher in place of those of the file: kept where they have the form, cached, never asked twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eft_engine import Engine
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation import asking
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.scorers import PatternMatch
from eft_engine.zoo.atlas.behaviour import ASSISTANT_FORM
from eft_engine.zoo.atlas.held_out import load_fact_questions
from eft_engine.zoo.presets import atlas
from eft_tuning.chats import Chat
from eft_tuning.rewriting import RewriteOptions, Rewritten, rewrite

FORM = PatternMatch(ASSISTANT_FORM)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(atlas("assistant")) as own:
        yield own


def rows(count: int = 8) -> list[Chat]:
    """Rows whose answers are no teacher's."""
    return [
        Chat(
            [
                {"role": "user", "content": own.question},
                {
                    "role": "assistant",
                    "content": f"The answer to this question of yours is number {n}. Source: memory.",
                },
            ],
            n,
        )
        for n, own in enumerate(load_fact_questions()[:count], start=1)
    ]


def ask(engine: Engine, chats: list[Chat], folder: Path, **options: Any) -> Rewritten:
    return rewrite(engine, chats, **{"teacher": "atlas", "cache": folder / "answers.jsonl", "form": FORM, **options})


def test_answers_are_the_teachers_and_have_the_form(engine: Engine, tmp_path: Path) -> None:
    chats, seen = rows(), list[tuple[int, int]]()
    rewritten = ask(engine, chats, tmp_path, on_progress=lambda done, total: seen.append((done, total)))
    assert len(rewritten.chats) + rewritten.num_dropped == len(chats)
    assert len(rewritten.chats) >= 4
    by_line = {chat.line: chat for chat in chats}
    for own in rewritten.chats:
        assert own.prompt == by_line[own.line].prompt
        assert own.answer != by_line[own.line].answer
        assert FORM.score(Question(messages=own.prompt), own.answer)
    assert seen[0] == (0, 8)
    assert seen[-1] == (8, 8)
    assert rewritten.in_words()[0] == f"{len(rewritten.chats)} answers rewritten, {rewritten.num_dropped} dropped"


def test_a_stopped_run_goes_on_and_nothing_is_asked_twice(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ask(engine, rows(), tmp_path)
    cache = tmp_path / "answers.jsonl"
    lines = cache.read_text(encoding="utf-8").splitlines(keepends=True)
    cache.write_text("".join(lines[:5]) + lines[5][:20], encoding="utf-8")
    asked: list[int] = []
    original = asking.ask

    def counting(engine: Engine, prompts: Any, **arguments: Any) -> Any:
        asked.append(len(prompts))
        return original(engine, prompts, **arguments)

    monkeypatch.setattr(asking, "ask", counting)
    assert ask(engine, rows(), tmp_path) == whole
    assert ask(engine, rows(), tmp_path) == whole
    assert asked == [3]
    assert sorted(cache.read_text(encoding="utf-8").splitlines(keepends=True)) == sorted(lines)
    ask(engine, rows(), tmp_path, teacher="another")
    assert asked == [3, 8]


def test_what_does_not_have_the_form_is_dropped_and_told(engine: Engine, tmp_path: Path) -> None:
    form = PatternMatch(r"[^A]*")
    rewritten = ask(engine, rows(24), tmp_path, form=form)
    (reason,) = [reason for reason in rewritten.dropped if reason.startswith("not in form")]
    assert rewritten.dropped[reason]
    assert {chat.line for chat in rewritten.chats} | {n for lines in rewritten.dropped.values() for n in lines} == set(
        range(1, 25)
    )
    assert any(line.startswith(f"dropped, {reason}: line") for line in rewritten.in_words())
    with pytest.raises(InvalidOptionError, match="none of 8 answers has the form"):
        ask(engine, rows(), tmp_path, form=PatternMatch("never"))


def test_without_a_measure_an_answer_is_no_longer_than_those_of_the_file(engine: Engine, tmp_path: Path) -> None:
    short = [Chat([*chat.prompt, {"role": "assistant", "content": "Yes."}], chat.line) for chat in rows()]
    with pytest.raises(InvalidOptionError, match="none of 8 answers has the form"):  # all of them are cut
        ask(engine, short, tmp_path, form=None)
    assert len(ask(engine, rows(), tmp_path, form=None).chats) >= 4


def test_rows_with_several_answers_or_calls_are_left_out(engine: Engine, tmp_path: Path) -> None:
    first = rows(1)[0]
    several = Chat([*first.messages, *first.messages], 50)
    called = Chat(
        [*first.prompt, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}], 51
    )
    rewritten = ask(engine, [*rows(), several, called], tmp_path, options=RewriteOptions(num_shots=1))
    assert rewritten.skipped == [50, 51]
    assert "lines 50 and 51" in rewritten.in_words()[-1]


def test_a_cache_that_is_none_is_an_error(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('{"other": 1}\n', encoding="utf-8")
    with pytest.raises(InvalidOptionError, match="does not hold answers of a teacher"):
        ask(engine, rows(), tmp_path)
