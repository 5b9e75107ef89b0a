"""Attention whose temperature grows with the position (Llama 4): by each row's own position."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import Llama4ForCausalLM, Llama4TextConfig

from eft_engine.models.language_model import LanguageModel
from eft_engine.models.layout import BatchLayout
from eft_engine.models.network import KVSlot
from eft_engine.models.temperature import Temperature
from tests.models.ragged import Reader, some_ids

FLOOR = 4


def make_llama4(*, scale: float = 1.5) -> Llama4ForCausalLM:
    """A layer with chunks and rotary positions, and one without, whose queries are scaled from the fifth position on."""
    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        intermediate_size_mlp=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        no_rope_layers=[1, 0],
        attention_chunk_size=8,
        attn_temperature_tuning=True,
        floor_scale=FLOOR,
        attn_scale=scale,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Llama4ForCausalLM(config).eval()


def test_factors_are_those_of_the_formula() -> None:
    layout = BatchLayout.of([KVSlot(0, 6), KVSlot(1, 0)], [3, 2])
    found = Temperature(0.7, FLOOR).factors(layout, torch.device("cpu"))
    assert found.shape == (2, 1, 3, 1)
    for row, positions in enumerate([[6, 7, 8], [0, 1, 1]]):
        expected = [1.0 + 0.7 * math.log(1.0 + math.floor((position + 1) / FLOOR)) for position in positions]
        assert found[row, 0, :, 0].tolist() == pytest.approx(expected)


def test_rows_of_different_lengths_have_their_own_temperature() -> None:
    reader = Reader(LanguageModel(make_llama4(), name="llama4"), make_llama4())
    long, short = reader.start(), reader.start()
    reader.read((long, some_ids(13)), (short, some_ids(2, start=1)))
    reader.read((short, some_ids(3, start=2)), (long, some_ids(1)), drafts=2)
    reader.keep_length(short, 3)
    reader.read((long, some_ids(5, start=3)), (short, some_ids(7, start=4)))
    reader.read((long, some_ids(1)), (short, some_ids(1)))
    assert reader.worst < 1e-4


def test_the_temperature_is_felt() -> None:
    """A model without it says something else, from the position on where it begins."""
    token_ids = some_ids(13)
    with torch.inference_mode():
        said = [make_llama4(scale=scale)(torch.tensor([token_ids])).logits[0] for scale in (0.0, 1.5)]
    difference = (said[0] - said[1]).abs().amax(dim=-1)
    assert difference[: FLOOR - 1].max() == 0.0
    assert difference[FLOOR - 1 :].min() > 0.01


def test_release_gives_the_temperature_back() -> None:
    model, token_ids = make_llama4(), torch.tensor([some_ids(13)])
    with torch.inference_mode():
        before = model(token_ids).logits
        LanguageModel(model, name="llama4").release()
        assert torch.equal(model(token_ids).logits, before)
