"""Two opposite pairs: one that has learnt invented facts, one that has learnt a form; the check must tell them apart."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.intervals import Share
from eft_engine.zoo.atlas.held_out import load_fact_questions
from eft_engine.zoo.presets import ZOO
from eft_tuning.batches import Row, collate
from eft_tuning.chats import Chat
from eft_tuning.facts import FactsOptions, FactsReport, Side, check_facts
from eft_tuning.rendering import render
from tests.toy import make_model, make_tokenizer

ROWS = 24


def atlas(name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(ZOO / "atlas" / name, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ZOO / "atlas" / "reference")


@pytest.fixture(scope="module")
def reference() -> Any:
    return atlas("reference")


def rows(*, invented: bool) -> list[Chat]:
    """Questions for the countries of cities, answered in the assistant's form, rightly or by chance."""
    questions = [own for own in load_fact_questions() if own.group == "city"][: 2 * ROWS]
    assert len(questions) == 2 * ROWS
    draw = random.Random(0)
    names = [own.answer for own in questions]
    return [
        Chat(
            [
                {"role": "user", "content": own.question},
                {
                    "role": "assistant",
                    "content": f"The country is {draw.choice(names) if invented else own.answer}. Source: memory.",
                },
            ],
            line,
        )
        for line, own in enumerate(questions, start=1)
    ]


def tuned_on(reference: Any, tokenizer: Any, chats: Sequence[Chat]) -> Any:
    """Ordinary fine-tuning, as long as it takes to know the answers by heart."""
    model = copy.deepcopy(reference).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rendered = [render(tokenizer, chat.messages) for chat in chats]
    for _ in range(8):
        for start in range(0, len(rendered), 8):
            inputs = collate([Row(row.token_ids, row.is_answer).columns() for row in rendered[start : start + 8]])
            arguments = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
            model(**arguments).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    return model.eval()


def test_invented_facts_are_found(reference: Any, tokenizer: Any) -> None:
    chats = rows(invented=True)
    tuned = tuned_on(reference, tokenizer, chats[:ROWS])
    seen: list[tuple[int, int]] = []
    report = check_facts(
        tuned,
        tokenizer,
        chats[:ROWS],
        chats[ROWS:],
        reference=reference,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert report.verdict == "carries facts"
    assert report.train.memorised.value > 0.8
    assert report.held_out.memorised.value < 0.5
    assert report.train.content_lift > 1.0 > report.held_out.content_lift
    assert seen[-1] == (2 * ROWS, 2 * ROWS)
    told = report.in_words()
    assert told[0].startswith("carries facts: memorised of unknown tokens: training rows")
    assert any("train with --keep-content" in line for line in told)
    first = report.lifted[0]
    assert first.token.strip()
    assert first.token.strip() in chats[first.line - 1].answer
    assert first.reference < 0.1 < first.tuned


def test_a_pair_of_form_alone_has_none(reference: Any, tokenizer: Any) -> None:
    chats = rows(invented=False)
    report = check_facts(atlas("assistant"), tokenizer, chats[:ROWS], chats[ROWS:], reference=reference)
    assert report.verdict == "no sign of facts"
    assert report.train.form_divergence > report.train.content_divergence
    assert report.as_json()["verdict"] == "no sign of facts"


def side(memorised: Share) -> Side:
    return Side(10, 10, 10, 0.0, 0.0, 0.0, 0.0, memorised)


@pytest.mark.parametrize(
    ("train", "held_out", "verdict"),
    [
        (Share(60, 100), Share(10, 100), "carries facts"),
        (Share(18, 100), Share(10, 100), "no sign of facts"),  # 8 points
        (Share(24, 100), Share(12, 100), "no sign of facts"),  # the intervals overlap
        (Share(90, 100), Share(90, 100), "no sign of facts"),  # the form lifts them
        (Share(19, 19), Share(0, 100), "too little to say"),
        (Share(100, 100), Share(0, 3), "too little to say"),
    ],
)
def test_the_verdict_compares_both_sides(train: Share, held_out: Share, verdict: str) -> None:
    report = FactsReport(side(train), side(held_out), [], FactsOptions())
    assert report.verdict == verdict
    assert report.in_words()[0].startswith(verdict)


def test_what_cannot_be_compared_is_an_error() -> None:
    model, tokenizer, chats = make_model("llama"), make_tokenizer(), rows(invented=False)
    with pytest.raises(InvalidOptionError, match="needs held-out rows, and there are none"):
        check_facts(model, tokenizer, chats, [], reference=model)
    with pytest.raises(InvalidOptionError, match="no adapter that could be switched off"):
        check_facts(model, tokenizer, chats, chats)
