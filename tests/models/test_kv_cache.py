"""Ragged blocks over slots give the logits of full recomputation, whatever was truncated, moved or copied before."""

from __future__ import annotations

import random

import pytest
import torch

from eft_engine.models import lazy_memory
from eft_engine.models.kv_cache import SlotKVCache
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.layout import BatchLayout
from eft_engine.models.lazy_memory import PAGE_BYTES
from eft_engine.models.network import Block, KVSlot
from eft_engine.models.state_rows import StateSlot
from tests.resident import taken_bytes
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


def test_bytes_are_those_of_pages_that_positions_have_reached() -> None:
    model = LanguageModel(make_model("llama"), name="toy", self_check=False)
    assert model.kv_cache.num_bytes == 0
    slot = model.kv_cache.allocate()
    model.forward([Block(slot, [1], 0)])
    # layers x keys and values x kv heads, and in each a page or two of positions x head size x float32
    assert model.kv_cache.num_bytes == 2 * 2 * 2 * PAGE_BYTES
    model.forward([Block(slot, [1] * (PAGE_BYTES // (8 * 4)), 0)])
    assert model.kv_cache.num_bytes == 2 * 2 * 2 * 2 * PAGE_BYTES


def test_bytes_are_those_of_the_buffers_where_memory_is_not_taken_as_it_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lazy_memory, "is_lazy", lambda device: False)
    model = LanguageModel(make_model("llama"), name="toy", self_check=False)
    slot = model.kv_cache.allocate()
    model.forward([Block(slot, [1], 0)])
    # layers x keys and values x slots x kv heads x positions x head size x float32
    assert model.kv_cache.num_bytes == 2 * 2 * 1 * 2 * 256 * 8 * 4
    assert model.kv_cache.num_bytes_with([300]) == 2 * 2 * 2 * 2 * 512 * 8 * 4
    model.kv_cache.release(slot)
    model.kv_cache.trim()
    assert model.kv_cache.num_bytes == 0


def test_requests_of_200_to_6000_tokens_hold_the_bytes_of_their_own_tokens() -> None:
    """Counted by the system, through moves, copies, growth and short rows beside long ones."""
    cache, lengths = SlotKVCache(), [200 + 387 * index for index in range(16)]
    slots = [cache.allocate() for _ in lengths]
    chance = random.Random(0)
    while any(slot.length < length for slot, length in zip(slots, lengths, strict=True)):
        unread = [own for own in zip(slots, lengths, strict=True) if own[0].length < own[1]]
        chosen = chance.sample(unread, min(len(unread), 4))
        write(cache, {slot: min(300, length - slot.length) for slot, length in chosen})
    first = slots.pop(0)
    copy = cache.allocate()
    cache.copy_prefix(first, copy, 200)
    cache.release(first)
    cache.arrange([slots[1], copy, slots[-1]])
    token_bytes = 2 * 2 * 64 * 4  # keys and values x kv heads x head size x float32
    assert sum(lengths) * token_bytes <= cache.num_bytes <= 1.25 * sum(lengths) * token_bytes
    assert resident_bytes(cache) <= 1.25 * sum(lengths) * token_bytes
    assert cache.num_bytes_with([1000]) >= cache.num_bytes + 1000 * token_bytes
    for slot in slots:
        cache.release(slot)
    assert cache.num_bytes <= 1.25 * 200 * token_bytes
    assert resident_bytes(cache) <= cache.num_bytes + 2**20, "a megabyte for what lies beside them"


@torch.inference_mode()
def write(cache: SlotKVCache, counts: dict[StateSlot, int]) -> None:
    """A pass of one layer of two heads that writes so many positions of these slots."""
    slots = cache.arrange(list(counts))
    own = [counts[slot] for slot in slots]
    layout = BatchLayout.of(slots, own)
    cache.reserve(layout.needed_len)
    with cache.computing(layout, slots, own, [0] * len(own)):
        cache.update(*torch.ones(2, len(slots), 2, layout.num_columns, 64), 0)
        for slot, count in zip(slots, own, strict=True):
            slot.length += count


def resident_bytes(cache: SlotKVCache) -> int:
    """What the system has handed out for the buffers of a cache."""
    return taken_bytes(*(own for layer in cache.layers for own in layer.memory))


def test_truncating_beyond_the_length_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="cannot keep 3 of 2"):
        KVSlot(0, length=2).truncate(3)
