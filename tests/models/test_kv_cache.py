"""Ragged blocks over slots give the logits of full recomputation, whatever was truncated, moved or copied before."""

from __future__ import annotations

import random

import pytest
import torch

from eft_engine.models.kv_cache import SlotKVCache
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.network import Block, KVSlot
from tests.toy import ARCHITECTURES, VOCAB_SIZE, make_model

TOLERANCE = 2e-4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_schedule_equals_recomputation(architecture: str) -> None:
    plain, model = make_model(architecture), LanguageModel(make_model(architecture), name="toy")
    chance = random.Random(architecture)
    rows: dict[KVSlot, list[int]] = {}
    worst = 0.0
    for _ in range(40):
        if len(rows) < 5 and chance.random() < 0.5:
            rows[model.kv_cache.allocate()] = []
        if rows and chance.random() < 0.15:
            slot = chance.choice(list(rows))
            model.kv_cache.release(slot)
            del rows[slot]
        for slot, token_ids in rows.items():
            if chance.random() < 0.3:  # drafts are rejected
                keep = chance.randint(0, len(token_ids))
                slot.truncate(keep)
                del token_ids[keep:]
        if chance.random() < 0.1:
            model.kv_cache.trim()
        if len(rows) > 1 and len(rows) < 5 and chance.random() < 0.3:
            source = chance.choice(list(rows))
            target = model.kv_cache.allocate()
            length = chance.randint(0, source.length)
            model.kv_cache.copy_prefix(source, target, length)
            rows[target] = rows[source][:length]
        chosen = chance.sample(list(rows), chance.randint(0, len(rows)))
        if not chosen:
            continue
        blocks = []
        for slot in chosen:
            new = [chance.randrange(VOCAB_SIZE) for _ in range(chance.randint(1, 7))]
            rows[slot] += new
            blocks.append(Block(slot, new, chance.randint(0, len(new))))
        logits = list(model.forward(blocks))
        for block in blocks:
            expected = plain(torch.tensor([rows[block.slot]])).logits[0]
            for position in range(block.num_logits):
                difference = logits.pop(0) - expected[len(expected) - block.num_logits + position]
                worst = max(worst, difference.abs().max().item() / expected.abs().max().item())
        assert not logits
        assert all(slot.length == len(token_ids) for slot, token_ids in rows.items())
    assert worst < TOLERANCE


def test_arranging_makes_slots_adjacent_and_keeps_their_contents() -> None:
    model = LanguageModel(make_model("llama"), name="toy")
    slots = [model.kv_cache.allocate() for _ in range(5)]
    for index, slot in enumerate(slots):
        model.forward([Block(slot, [index + 1] * (index + 1), 0)])
    placed = model.kv_cache.arrange([slots[0], slots[4], slots[2]])
    assert [slot.index for slot in placed] == list(range(placed[0].index, placed[0].index + 3))
    plain = make_model("llama")
    for index, slot in enumerate(slots):
        ours = model.forward([Block(slot, [9], 1)])[0]
        expected = plain(torch.tensor([[index + 1] * (index + 1) + [9]])).logits[0, -1]
        assert torch.allclose(ours, expected, atol=1e-3)


def test_slots_are_reused_and_grow_by_doubling() -> None:
    cache = SlotKVCache()
    first, second, third = (cache.allocate() for _ in range(3))
    assert ([slot.index for slot in (first, second, third)], cache.num_slots) == ([0, 1, 2], 4)
    cache.release(second)
    assert cache.allocate().index == 1


def test_erasing_silences_nan_for_the_next_user_of_the_slot() -> None:
    model = LanguageModel(make_model("llama"), name="toy")
    slot = model.kv_cache.allocate()
    model.forward([Block(slot, [1, 2, 3, 4], 0)])
    with torch.inference_mode():
        model.kv_cache.layers[0].keys[slot.index] = torch.nan
    model.kv_cache.release(slot, erase=True)
    again = model.kv_cache.allocate()
    assert model.forward([Block(again, [1, 2], 1)]).isfinite().all()


def test_bytes_are_those_of_the_buffers() -> None:
    model = LanguageModel(make_model("llama"), name="toy", self_check=False)
    assert model.kv_cache.num_bytes == 0
    model.forward([Block(model.kv_cache.allocate(), [1], 0)])
    # layers x keys and values x slots x kv heads x positions x head size x float32
    assert model.kv_cache.num_bytes == 2 * 2 * 1 * 2 * 256 * 8 * 4


def test_truncating_beyond_the_length_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="cannot keep 3 of 2"):
        KVSlot(0, length=2).truncate(3)
