"""The loss is the one that a slow loop computes, and held content leaves the model as it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eft_engine.errors import InvalidOptionError
from eft_tuning.batches import GroupedByLength, Row, collate
from eft_tuning.chats import load_chats
from eft_tuning.content import Kind, TopLogprobs
from eft_tuning.losses import answer_positions, divergence, logits_at
from eft_tuning.models import load_reference, plan_reference
from eft_tuning.preparing import answer_rows

Tune = Callable[..., int]


def entries(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]


def test_first_loss_is_that_of_each_answer_by_itself(tune: Tune, tmp_path: Path, reference: str, chats: Path) -> None:
    """All rows are one step, so the order does not matter; the adapter is still off."""
    assert tune(batch_size=20, epochs=1.0, held_out_share=0.0) == 0
    planned = plan_reference(reference, dtype="float32")
    model = load_reference(planned)
    total, count = 0.0, 0
    for row in answer_rows(load_chats(chats), planned.tokenizer):
        logprobs = model(torch.tensor([row.token_ids])).logits[0].log_softmax(dim=-1)
        for place, own in enumerate(row.is_answer):
            if own:
                total -= logprobs[place - 1, row.token_ids[place]].item()
                count += 1
    assert entries(tmp_path / "out")[0]["loss"] == pytest.approx(total / count, rel=1e-4)


def test_logits_at_answers_are_those_of_the_whole_pass(reference: str) -> None:
    model = load_reference(plan_reference(reference, dtype="float32"))
    rows = [Row([5, 6, 7, 8, 9], [False, False, False, True, True]), Row([1, 2, 3], [False, True, False])]
    inputs = collate([row.columns() for row in rows])
    columns, chosen, targets = answer_positions(inputs["labels"])
    assert targets.tolist() == [8, 9, 2]
    whole = [model(torch.tensor([row.token_ids])).logits[0] for row in rows]
    expected = torch.stack([whole[0][2], whole[0][3], whole[1][0]])
    assert torch.allclose(logits_at(model, inputs, columns, chosen), expected, atol=1e-4)


def test_weight_on_content_holds_the_model_there(tune: Tune, tmp_path: Path) -> None:
    """The end of the turn is learned, and the words of the answer are to stay as the model would have them."""
    last = {}
    for name, weight in (("free", 0.0), ("held", 1.0)):
        assert (
            tune(name, keep_content="hold", content_pattern="ok", content_weight=weight, epochs=4.0, learning_rate=0.01)
            == 0
        )
        last[name] = next(entry for entry in reversed(entries(tmp_path / name)) if "eval_loss" in entry)
    assert last["held"]["eval_content_loss"] < 0.5 * last["free"]["eval_content_loss"]
    assert last["held"]["eval_form_loss"] < 3.0


def test_content_is_held_at_a_weight(tune: Tune, tmp_path: Path) -> None:
    """What is minimised is the composition of the reference with its own pair, not the tuned model alone."""
    generator = torch.Generator().manual_seed(0)
    reference, tuned = torch.randn(2, 5, 7, generator=generator).unbind()
    for weight in (1.0, 2.5):
        before, after = reference.softmax(dim=-1), tuned.softmax(dim=-1)
        composed = before * (after / before) ** weight
        composed /= composed.sum(dim=-1, keepdim=True)
        expected = (before * (before / composed).log()).sum(dim=-1) / weight
        assert torch.allclose(divergence(reference, tuned, at=weight), expected, atol=1e-5)
    losses = {}
    for weight in (1.0, 4.0):
        name = f"at-{weight}"
        assert tune(name, keep_content="hold", content_pattern="ok", content_at=weight, epochs=1.0) == 0
        losses[weight] = [entry["content_loss"] for entry in entries(tmp_path / name) if "content_loss" in entry]
    assert losses[1.0][0] == losses[4.0][0] == pytest.approx(0.0, abs=1e-6)  # the adapter begins at nothing
    assert losses[1.0][-1] != losses[4.0][-1]


def test_form_counts_by_its_weight_where_content_is_held(tune: Tune, tmp_path: Path) -> None:
    """The adapter begins at nothing, so the first loss is that of the form alone."""
    first = {}
    for weight in (1.0, 3.0, None):
        given = {} if weight is None else {"form_weight": weight}
        assert (
            tune(f"form-{weight}", keep_content="hold", content_pattern="ok", batch_size=20, epochs=1.0, **given) == 0
        )
        first[weight] = entries(tmp_path / f"form-{weight}")[0]["loss"]
    assert first[3.0] == pytest.approx(3 * first[1.0], rel=1e-4)
    assert first[None] == first[3.0]


def test_held_rows_are_found_by_the_model_itself(tune: Tune, tmp_path: Path) -> None:
    assert tune(keep_content="hold", epochs=1.0) == 0
    kinds = {name for entry in entries(tmp_path / "out") for name in entry if name.endswith("_loss")}
    assert kinds & {"content_loss", "told_loss", "form_loss"}


def test_told_tokens_are_learned_from_what_is_told(reference: str) -> None:
    """A teacher that gives one token everything is cross-entropy with that token."""
    from eft_tuning.bake.divergence import divergence as bucket_divergence
    from eft_tuning.bake.divergence import student_buckets, teacher_buckets

    row = Row([5, 6, 7], [False, False, True], [Kind.READ, Kind.READ, Kind.TOLD], {2: TopLogprobs((9,), (0.0,))})
    inputs = collate([row.columns()])
    logits = torch.randn(1, 20)
    told = inputs["teacher_logprobs"] > -math.inf
    loss = bucket_divergence(
        teacher_buckets(inputs["teacher_logprobs"], told), student_buckets(logits, inputs["teacher_ids"], told)
    )
    assert loss.item() == pytest.approx(-logits.log_softmax(dim=-1)[0, 9].item(), rel=1e-5)


def test_preferences_begin_at_the_reference_and_move_to_what_is_chosen(
    tune: Tune, tmp_path: Path, preferences: Path
) -> None:
    assert tune(rows=preferences, epochs=4.0, learning_rate=0.005) == 0
    found = [entry for entry in entries(tmp_path / "out") if "loss" in entry]
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert found[-1]["loss"] < 0.5 * math.log(2)
    assert found[-1]["rewards/accuracies"] == 1.0
    assert json.loads((tmp_path / "out" / "tuning.json").read_text())["kind"] == "dpo"


def test_preferences_cannot_hold_content(tune: Tune, preferences: Path) -> None:
    with pytest.raises(InvalidOptionError, match="--beta"):
        tune(rows=preferences, keep_content="hold")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"beta": 0.2}, "--beta is for a file of preferences"),
        ({"teacher": "a"}, "--teacher is for --keep-content rewrite"),
        ({"keep_content": "rewrite", "content_pattern": "a"}, "--content-pattern is for --keep-content hold"),
        ({"told_weight": 0.0}, "--told-weight is for --keep-content hold"),
        ({"content_at": 2.0}, "--content-at is for --keep-content hold"),
    ],
)
def test_option_that_would_do_nothing_is_refused(tune: Tune, given: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidOptionError, match=named):
        tune(**{"keep_content": "off", **given})


def test_order_is_a_matter_of_seed_and_epoch_alone() -> None:
    lengths = [length % 7 + 1 for length in range(23)]
    orders = []
    for _ in range(2):
        sampler = GroupedByLength(lengths, batch_size=4, seed=5)
        torch.rand(3)  # what else is drawn does not matter
        passes = []
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            passes.append(list(sampler))
        orders.append(passes)
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]
    assert all(sorted(order) == list(range(23)) for order in orders[0])
