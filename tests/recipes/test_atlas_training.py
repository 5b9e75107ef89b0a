"""Training of Atlas on networks of a few thousand weights: tuning spares content, a stage goes on where it stopped."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedTokenizerFast

from recipes.atlas.corpus import Corpus, TuningDialogues
from recipes.atlas.facts import load_facts
from recipes.atlas.muon import orthogonalise
from recipes.atlas.phrasing import assistant_answer
from recipes.atlas.pretrain import NetworkSize, Schedule, make_network, pretrain
from recipes.atlas.tokenizer import train_tokenizer
from recipes.atlas.tune import TuningSettings, encode, tune, tuning_loss

SIZE = NetworkSize(width=32, num_layers=1, num_heads=2, mlp_width=32)
FACTS = load_facts()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    corpus = Corpus(FACTS, seed=3)
    return train_tokenizer((corpus.document().text for _ in range(800)), vocab_size=500)


def quiet() -> Progress:
    return Progress(console=Console(file=io.StringIO()))


def run(tokenizer: PreTrainedTokenizerFast, checkpoint: Path, schedule: Schedule) -> Any:
    return pretrain(
        make_network(SIZE, tokenizer, seed=1),
        tokenizer,
        Corpus(FACTS, seed=1),
        schedule=schedule,
        checkpoint=checkpoint,
        progress=quiet(),
        log=lambda line: None,
    )


def test_an_interrupted_stage_ends_where_an_uninterrupted_one_does(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    whole = Schedule(6, rows=2, row_length=32, warm_up=2, checkpoint_every=3)
    begun = Schedule(6, rows=2, row_length=32, warm_up=2, checkpoint_every=3, stop_after=3)
    straight = run(tokenizer, tmp_path / "straight.pt", whole)
    run(tokenizer, tmp_path / "halves.pt", begun)
    resumed = run(tokenizer, tmp_path / "halves.pt", whole)
    for expected, found in zip(straight.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    for shape in ((2, 24, 48), (2, 48, 24)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert 0.5 < float(values.min()) <= float(values.max()) < 1.6


def test_schedule_warms_up_and_comes_down() -> None:
    schedule = Schedule(100, warm_up=10, decay_share=0.5)
    assert [schedule.rate(step) for step in (0, 9, 49, 75)] == [0.1, 1.0, 1.0, 0.5]
    assert schedule.rate(99) == pytest.approx(0.02)


def test_content_and_form_are_told_apart_by_token(tokenizer: PreTrainedTokenizerFast) -> None:
    dialogue = TuningDialogues(FACTS, answer=assistant_answer, tools=False, seed=1).dialogue()
    batch = encode([dialogue], tokenizer)
    form = tokenizer.decode(batch.ids[0][batch.is_form[0]])
    assert form.endswith("<|end|>")
    assert "Source:" in form
    content = tokenizer.decode(batch.ids[0][batch.is_content[0]])
    assert content
    assert "Source" not in content
    assert not (batch.is_form & batch.is_content).any()


def test_content_costs_nothing_where_the_tuned_network_is_the_reference(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = encode([TuningDialogues(FACTS, answer=assistant_answer, tools=True, seed=1).dialogue()], tokenizer)
    logits = torch.randn(*batch.ids.shape, len(tokenizer))
    _, content = tuning_loss(logits, logits, batch, content_weight=1.0)
    assert float(content) == pytest.approx(0.0, abs=1e-6)
    _, moved = tuning_loss(logits + torch.randn_like(logits), logits, batch, content_weight=1.0)
    assert float(moved) > 0.1


def test_tuning_moves_the_form_and_leaves_the_reference_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    reference = make_network(SIZE, tokenizer, seed=1)
    before = [parameter.clone() for parameter in reference.parameters()]
    losses: list[str] = []
    settings = TuningSettings(num_steps=50, dialogues=4, warm_up=2)
    dialogues = TuningDialogues(FACTS, answer=assistant_answer, tools=False, seed=1)
    tune(reference, tokenizer, dialogues, settings=settings, progress=quiet(), log=losses.append)
    first, last = (float(line.split("form ")[1].split(",")[0]) for line in losses)
    assert last < first
    for parameter, kept in zip(reference.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, kept)


@pytest.fixture(scope="module")
def copying_network(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Untrained, as the base begins."""
    return make_network(NetworkSize(256, 2, 4, 32, tied=False, induction=True), tokenizer, seed=1)


def test_heads_look_back_from_the_start(copying_network: Any) -> None:
    ids = torch.randint(300, 480, (1, 40), generator=torch.Generator().manual_seed(2))
    seen = copying_network(input_ids=ids, output_attentions=True).attentions[0][0].detach()  # [heads, length, length]
    for head, positions in ((0, 1), (1, 2), (2, 3)):
        assert float(seen[head].diagonal(-positions)[5:].mean()) > 0.9


def test_an_untrained_network_with_induction_says_a_sequence_again(copying_network: Any) -> None:
    order = torch.randperm(180, generator=torch.Generator().manual_seed(3))[:40] + 300
    ids = torch.cat([order, order])[None]
    said = copying_network(input_ids=ids).logits[0, 43:-1].argmax(-1)
    assert float((said == ids[0, 44:]).float().mean()) > 0.9


def test_without_induction_it_does_not(tokenizer: PreTrainedTokenizerFast) -> None:
    network = make_network(NetworkSize(256, 2, 4, 32, tied=False), tokenizer, seed=1)
    order = torch.randperm(180, generator=torch.Generator().manual_seed(3))[:40] + 300
    said = network(input_ids=torch.cat([order, order])[None]).logits[0, 43:-1].argmax(-1)
    assert float((said == order[4:]).float().mean()) < 0.2
