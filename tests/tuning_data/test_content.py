"""Form is told from content by what a model expects, by what answers share, or by a pattern."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eft_engine.errors import InvalidOptionError
from eft_engine.zoo.atlas.held_out import load_fact_questions
from eft_engine.zoo.presets import ZOO
from eft_tuning.chats import Chat
from eft_tuning.content import (
    HoldOptions,
    Kind,
    MarkedDialogue,
    jensen_shannon,
    mark,
    mark_by_pattern,
    mark_chats,
    told_in_words,
)
from eft_tuning.marks import MarkStore
from eft_tuning.passes import answer_logprobs, batches_of
from eft_tuning.rendering import Rendered, render
from eft_tuning.shared import LEAST_ANSWERS, SharedRuns
from eft_tuning.shots import pick_shots, render_told, with_shots
from tests.toy import make_model, make_tokenizer

C, F, T = Kind.CONTENT, Kind.FORM, Kind.TOLD


def chat(question: str, answer: str, line: int) -> Chat:
    return Chat([{"role": "user", "content": question}, {"role": "assistant", "content": answer}], line)


def of_text(marked: MarkedDialogue, kind: Kind) -> str:
    """Text of the tokens of a kind; bytes are ids in the toy tokenizer's alphabet."""
    tokenizer = make_tokenizer()
    own = [token for token, its in zip(marked.token_ids, marked.kinds, strict=True) if its == kind]
    return str(tokenizer.decode(own, skip_special_tokens=False))


# ---- by what a model expects --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plain", "told", "kind"),
    [
        ([0.6, 0.3, 0.1], [0.6, 0.3, 0.1], C),  # the same expectation, whatever the data say
        ([0.001, 0.5, 0.499], [0.001, 0.5, 0.499], C),
        ([0.001, 0.9, 0.099], [0.97, 0.02, 0.01], F),  # the form makes the token likely
        ([0.1, 0.8, 0.1], [0.01, 0.02, 0.97], T),  # another token would have the form
        ([0.75, 0.2, 0.05], [0.98, 0.01, 0.01], F),  # nearly the same, and certain
        ([0.04, 0.86, 0.1], [0.2, 0.75, 0.05], F),  # nearly the same, and far more probable
        ([0.6, 0.3, 0.1], [0.45, 0.35, 0.2], C),  # nearly the same, and a little less probable
    ],
)
def test_kinds(plain: list[float], told: list[float], kind: Kind) -> None:
    marked = mark(Rendered([5, 0], [False, True]), torch.tensor([plain]).log(), torch.tensor([told]).log())
    assert marked.kinds == [Kind.READ, kind]
    assert marked.is_held == [False, kind == C]


def test_told_tokens_keep_the_best_of_the_model_that_is_told() -> None:
    plain, told = torch.tensor([[0.1, 0.7, 0.1, 0.1]]).log(), torch.tensor([[0.01, 0.04, 0.15, 0.8]]).log()
    marked = mark(Rendered([9, 0], [False, True]), plain, told, HoldOptions(top_k=2))
    assert list(marked.teacher) == [1]
    assert marked.teacher[1].token_ids == (3, 2)
    assert torch.tensor(marked.teacher[1].logprobs).exp().tolist() == pytest.approx([0.8, 0.15])


def test_what_most_answers_share_is_form_whatever_a_model_expects() -> None:
    same = torch.tensor([[0.1, 0.8, 0.1], [0.1, 0.8, 0.1]]).log()
    assert mark(Rendered([5, 0, 1], [False, True, True]), same, same, shared={1}).kinds == [Kind.READ, F, C]


def test_divergence_is_that_of_the_formula() -> None:
    one, other = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert jensen_shannon(one, other).item() == pytest.approx(0.0338, abs=1e-4)
    assert jensen_shannon(one, one).item() == 0.0


# ---- by what answers share ----------------------------------------------------------------------------------------------


def test_runs_that_most_answers_have_are_form() -> None:
    tokenizer = make_tokenizer()
    words = ["lima", "oslo", "rome", "kyiv", "bern", "riga", "bonn", "york", "nice", "cork", "metz", "graz"]
    rows = [render(tokenizer, chat("Where?", json.dumps({"city": word}), 1).messages) for word in words]
    assert len(rows) >= LEAST_ANSWERS
    runs = SharedRuns.of(rows, share=0.6)
    for row, word in zip(rows, words, strict=True):
        shared = [tokenizer.decode([row.token_ids[place]]) for place in sorted(runs.places(row))]
        assert "".join(shared) == json.dumps({"city": word}).replace(word, "") + "<|end|>"
    assert SharedRuns.of(rows[: LEAST_ANSWERS - 1], share=0.6).places(rows[0]) == frozenset()


# ---- by a pattern -------------------------------------------------------------------------------------------------------


def test_groups_of_a_pattern_are_content() -> None:
    tokenizer = make_tokenizer()
    rendered = render(tokenizer, chat('{"city": "x"}', '{"city": "Córdoba", "in": "Spain"}', 1).messages)
    marked = mark_by_pattern(rendered, tokenizer, r'"city": "(.*?)"|"in": "(.*?)"')
    assert of_text(marked, C) == "CórdobaSpain"
    assert of_text(marked, F) == '{"city": "", "in": ""}<|end|>'
    assert of_text(mark_by_pattern(rendered, tokenizer, "Spain"), C) == "Spain"
    assert of_text(mark_by_pattern(rendered, tokenizer, "Peru"), C) == ""


def test_a_pattern_that_is_none_is_an_error() -> None:
    with pytest.raises(InvalidOptionError, match=r"not a regular expression: '\('"):
        mark_by_pattern(Rendered([1], [True]), make_tokenizer(), "(")


# ---- examples that show the form ----------------------------------------------------------------------------------------


def test_shots_are_others_and_unlike_one_another() -> None:
    rows = [chat(f"Where is {word}?", f"{word} is in the north.", n) for n, word in enumerate("abcdefghij")]
    again = chat("Where is a?", "Elsewhere.", 99)
    for row in rows:
        shots = pick_shots([*rows, again], count=3, seed=0, without=row)
        assert len({id(shot) for shot in shots}) == 3
        assert all(shot is not row and shot.question != row.question for shot in shots)
        assert shots == pick_shots([*rows, again], count=3, seed=0, without=row)
    alike = [chat("x y z one two", "x y z", n) for n in range(6)] + [chat("p q r s t", "u v w", 9)]
    assert any(shot.line == 9 for shot in pick_shots(alike, count=2, seed=0))
    assert pick_shots(rows[:1], count=3, seed=0, without=rows[0]) == []


def test_a_row_behind_shots_has_the_same_answer_and_only_that() -> None:
    tokenizer = make_tokenizer()
    system = {"role": "system", "content": "Be kind."}
    own = Chat([system, *chat("Who?", "Me.", 1).messages], 1)
    shots = [
        Chat([{"role": "system", "content": "Be rude."}, *chat("Where?", "Here.", 2).messages], 2),
        chat("When?", "Now.", 3),
    ]
    assert [message["content"] for message in with_shots(own.messages, shots)] == [
        "Be kind.", "Where?", "Here.", "When?", "Now.", "Who?", "Me."
    ]  # fmt: skip
    plain = render(tokenizer, own.messages)
    told = render_told(tokenizer, own, shots, plain=plain, max_length=1000)
    assert told is not None
    assert told.num_answer_tokens == plain.num_answer_tokens == len("Me.") + 1
    assert told.is_answer[-4:] == [True] * 4
    shorter = render_told(tokenizer, own, shots, plain=plain, max_length=len(told) - 1)
    assert shorter is not None
    assert "Where?" not in tokenizer.decode(shorter.token_ids)
    assert render_told(tokenizer, own, shots, plain=plain, max_length=len(plain)) is None


# ---- passes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3_next"])
def test_rows_in_passes_together_are_rows_by_themselves(architecture: str) -> None:
    model, tokenizer = make_model(architecture), make_tokenizer()
    rows = [render(tokenizer, chat("Where?" * n, "Over there." * (1 + n % 3), n).messages) for n in range(1, 7)]
    found = dict(answer_logprobs(model, rows))
    assert sorted(found) == list(range(6))
    with torch.inference_mode():
        for index, row in enumerate(rows):
            alone = model(torch.tensor([row.token_ids])).logits[0].log_softmax(dim=-1)
            places = [place - 1 for place, own in enumerate(row.is_answer) if own]
            torch.testing.assert_close(found[index], alone[places], atol=2e-4, rtol=1e-3)


def test_passes_are_bounded() -> None:
    rows = [Rendered([0] * length, [False] + [True] * (length - 1)) for length in (5000, 10, 300, 20)]
    assert batches_of(rows) == [[1, 3], [2], [0]]


# ---- all of it on a real model ------------------------------------------------------------------------------------------


def test_facts_of_a_file_are_held_and_its_form_is_not(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(ZOO / "atlas" / "reference", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "atlas" / "reference")
    questions = [own for own in load_fact_questions() if own.group == "city"][:16]
    chats = [chat(own.question, f"It lies in {own.answer}. Source: memory.", n + 1) for n, own in enumerate(questions)]
    seen: list[tuple[int, int]] = []
    marked = mark_chats(model, tokenizer, chats, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(8, 16), (16, 16)]
    held = [
        str(tokenizer.decode([token for token, own in zip(row.token_ids, row.is_held, strict=True) if own])).strip()
        for row in marked
    ]
    assert sum(text == own.answer for text, own in zip(held, questions, strict=True)) >= 14
    assert "form" in told_in_words(marked)

    store = MarkStore(tmp_path / "work" / "training.marks.jsonl")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mark_chats(model, tokenizer, chats, store=store, on_progress=stop)
    with store.path.open("a") as file:
        file.write('{"3": {"token_')  # a group that was being written
    assert len(store.read()) == 8
    again = mark_chats(model, tokenizer, chats, store=store)
    assert again == marked == [own for _, own in sorted(store.read().items())]
    assert mark_chats(None, tokenizer, chats, store=store) == marked, "no model is needed"
    with pytest.raises(InvalidOptionError, match="no dialogue can be read behind others"):
        mark_chats(model, tokenizer, chats[:1])


def test_next_to_nothing_to_learn_is_told() -> None:
    assert "next to nothing to learn" in told_in_words([MarkedDialogue([1, 2], [True, True], [C, C])])
