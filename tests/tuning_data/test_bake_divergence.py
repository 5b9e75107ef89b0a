"""Divergences over told tokens and the rest, against the whole sum; and rows of a teacher against the models themselves."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from eft_engine import TokenIds
from eft_engine.config import CompositionOptions
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.teacher import Completed, TeacherRow, read_rows, score_rows
from eft_tuning.bake.divergence import divergence, student_buckets, teacher_buckets
from eft_tuning.bake.rows import TaughtRows, collate, taught
from tests.toy import ToyTrio, naive_greedy

VOCAB = 12


def told_by(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities and ids of the k most probable tokens, all of them told."""
    logprobs, token_ids = logits.log_softmax(dim=-1).topk(k, dim=-1)
    return logprobs, token_ids, torch.ones_like(token_ids, dtype=torch.bool)


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_all_tokens_told_give_the_whole_divergence(kind: str) -> None:
    teacher, student = torch.randn(2, 5, VOCAB)
    logprobs, token_ids, told = told_by(teacher, VOCAB)
    found = divergence(teacher_buckets(logprobs, told), student_buckets(student, token_ids, told), kind)
    of, to = (teacher, student) if kind == "forward" else (student, teacher)
    whole = torch.nn.functional.kl_div(to.log_softmax(-1), of.log_softmax(-1), log_target=True, reduction="none").sum(
        -1
    )
    torch.testing.assert_close(found, whole)


def test_buckets_never_diverge_more_than_all_tokens_and_more_so_the_more_are_told() -> None:
    teacher, student = 2 * torch.randn(2, 50, VOCAB)
    found = []
    for k in (1, 3, 6, VOCAB):
        logprobs, token_ids, told = told_by(teacher, k)
        found.append(divergence(teacher_buckets(logprobs, told), student_buckets(student, token_ids, told)))
    for fewer, more in itertools.pairwise(found):
        assert (fewer <= more + 1e-5).all()
    assert (found[0] < found[-1] - 1e-3).any()


def test_buckets_are_probabilities_where_fewer_tokens_are_told_than_others() -> None:
    token_ids = torch.tensor([[3, 5, 0], [0, 0, 0]])
    told = torch.tensor([[True, True, False], [True, False, False]])
    student = student_buckets(torch.randn(2, VOCAB), token_ids, told)
    torch.testing.assert_close(student.exp().sum(-1), torch.ones(2))
    assert student[0, 2] == -math.inf
    teacher = teacher_buckets(torch.tensor([[0.5, 0.25, 0.9], [1.0, 0.1, 0.1]]).log(), told)
    torch.testing.assert_close(teacher.exp(), torch.tensor([[0.5, 0.25, 0.0, 0.25], [1.0, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("kind", ["forward", "reverse", "jensen_shannon"])
def test_gradients_are_numbers_where_the_teacher_rules_tokens_out(kind: str) -> None:
    student = torch.zeros(1, 3, requires_grad=True)
    told = torch.tensor([[True, False]])
    teacher = teacher_buckets(torch.tensor([[0.0, -1e4]]), told)  # certain of token 1
    loss = divergence(teacher, student_buckets(student, torch.tensor([[1, 0]]), told), kind).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
    assert student.grad[0, 1] < 0 < student.grad[0, 0], "it is drawn to the token that the teacher is certain of"


def test_row_has_what_the_models_say_by_the_formula(toy_trio: ToyTrio) -> None:
    prompt_ids, top_k = list(b"abc"), 5
    completion_ids = naive_greedy(toy_trio, prompt_ids, weight=0.5, max_tokens=6)
    with toy_trio.engine() as engine:
        texts = [Completed(TokenIds(ids=tuple(prompt_ids)), tuple(completion_ids), index) for index in (4, 2)]
        rows = score_rows(engine, texts, top_k=top_k, reward_weights=0.5)
        assert [row.index for row in rows] == [4, 2]
        (cut,) = score_rows(
            engine, texts[:1], top_k=200, reward_weights=0.5, composition=CompositionOptions(min_plausibility=0.5)
        )
    input_ids = torch.tensor([[*prompt_ids, *completion_ids]])
    base, tuned, reference = (
        model(input_ids).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
        for model in (toy_trio.base, toy_trio.tuned, toy_trio.reference)
    )
    composed = (base + 0.5 * (tuned - reference)).log_softmax(-1)
    values, ids = composed.topk(top_k, dim=-1)
    assert rows[0].prompt_ids == tuple(prompt_ids)
    assert rows[0].logprob_token_ids == ids.tolist()
    torch.testing.assert_close(torch.tensor(rows[0].logprobs), values, atol=2e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(rows[0].actual_logprobs), values[:, 0], atol=2e-4, rtol=0)  # greedy
    assert all(0 < len(row) < 200 for row in cut.logprobs), "what the base finds implausible is not told"
    assert all(math.isclose(sum(map(math.exp, row)), 1.0, abs_tol=1e-4) for row in cut.logprobs)


def test_row_comes_back_from_its_file(tmp_path: Path) -> None:
    row = TeacherRow((1, 2), (3, 4), [[-0.1], [-math.inf, -2.0]], [[3], [9, 8]], [-0.1, -math.inf], "stop", 7)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row.as_json()) + "\n\n")
    (found,) = read_rows(tmp_path / "rows.jsonl")
    assert (found.prompt_ids, found.completion_ids, found.finish_reason, found.index) == ((1, 2), (3, 4), "stop", 7)
    assert (found.logprobs, found.actual_logprobs) == ([[-0.1], [-1e4, -2.0]], [-0.1, -1e4])
    (tmp_path / "rows.jsonl").write_text(json.dumps(row.as_json()) + '\n{"input_ids": [1], "completion_mask": [1]}\n')
    with pytest.raises(InvalidOptionError, match="line 2 holds no log-probabilities"):
        list(read_rows(tmp_path / "rows.jsonl"))


def test_written_token_is_told_where_the_composition_finds_it_improbable() -> None:
    row = TeacherRow((1,), (3, 4), [[-0.1, -2.0, -3.0], [-0.5, -1.0, -1.5]], [[3, 8, 9], [7, 8, 9]], [-0.1, -9.0])
    own = taught(row, top_k=3)
    assert own.token_ids.tolist() == [[3, 8, 9], [7, 8, 4]]
    assert own.logprobs[1].tolist() == [-0.5, -1.0, -9.0]
    short = taught(row, top_k=2)
    assert short.token_ids.tolist() == [[3, 8], [7, 4]]


def test_batch_is_padded_on_the_right_and_keeps_positions_in_order() -> None:
    rows = TaughtRows(
        [
            TeacherRow((1, 2, 3), (4,), [[-0.1]], [[4]], [-0.1]),
            TeacherRow((1,), (5, 6), [[-0.2], [-0.3]], [[5], [6]], [-0.2, -0.3]),
        ],
        top_k=2,
    )
    batch = collate([rows[0], rows[1]])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [1, 5, 6, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 4], [-100, 5, 6, -100]]
    assert batch["token_ids"].tolist() == [[4, 0], [5, 0], [6, 0]]
    assert batch["told"].tolist() == [[True, False]] * 3
    assert rows.lengths == [4, 3]
