"""Repeating on one rank what another did: here both are in one process and hold the whole network, so that they can be compared."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, Phi3Config

from eft_engine.errors import TensorParallelError
from eft_engine.models.network import Block, KVSlot
from eft_engine.models.process_group import Message
from eft_engine.models.tensor_parallel import ShardedLanguageModel, follow, why_not_split
from tests.toy import WITH_STATES, make_model

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


class Wire:
    """A channel that hands every message, as text, to a network in the same process at once."""

    failed = False
    rank = 0

    def __init__(self, follower: ShardedLanguageModel) -> None:
        self.follower = follower
        self.sent: list[Message] = []

    @contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def send(self, message: Message) -> None:
        self.sent.append(json.loads(json.dumps(message)))
        self.follower.repeat(self.sent[-1])

    def fail(self, reason: str) -> None:
        self.failed = True

    def close(self) -> None:
        """Nobody waits."""


def make_ranks(architecture: str = "llama") -> tuple[ShardedLanguageModel, ShardedLanguageModel, Wire]:
    leader, follower = (ShardedLanguageModel(make_model(architecture), name="base") for _ in range(2))
    wire = Wire(follower)
    leader.lead(wire)  # type: ignore[arg-type]
    return leader, follower, wire


def held(network: ShardedLanguageModel) -> list[tuple[Any, ...]]:
    """Size of the cache; number, place, length and contents of every slot in use."""
    cache = network.kv_cache
    size = (cache.num_slots, cache.max_len, cache.num_bytes)
    return [size] + [
        (
            number,
            slot.index,
            slot.length,
            *(layer.keys[slot.index, :, : slot.length].tolist() for layer in cache.layers if layer.is_initialized),
        )
        for slot, number in cache._numbers.items()
    ]


@pytest.mark.parametrize("seed", range(4))
def test_a_follower_holds_what_the_leader_holds_whatever_is_done(seed: int) -> None:
    leader, follower, _ = make_ranks()
    chance, cache, slots = random.Random(seed), leader.kv_cache, list[KVSlot]()
    for _ in range(60):
        action = chance.choice(["allocate", "allocate", "release", "copy", "truncate", "trim", *["forward"] * 6])
        if action == "allocate" or not slots:
            slots.append(cache.allocate())
            slots[-1].reserved_len = chance.randrange(400)
        elif action == "release":
            cache.release(slots.pop(chance.randrange(len(slots))), erase=chance.random() < 0.5)
        elif action == "copy":
            source = chance.choice(slots)
            slots.append(cache.allocate())
            cache.copy_prefix(source, slots[-1], chance.randint(0, source.length))
        elif action == "truncate":
            slot = chance.choice(slots)
            slot.truncate(chance.randint(0, slot.length))
        elif action == "trim":
            cache.trim()
        else:
            rows = chance.sample(slots, chance.randint(1, len(slots)))
            leader.forward([Block(s, [chance.randrange(250) for _ in range(chance.randint(1, 9))], 1) for s in rows])
            assert held(follower) == held(leader)


@pytest.mark.parametrize("architecture", WITH_STATES)
def test_a_follower_takes_drafts_back_and_keeps_states_as_the_leader_does(architecture: str) -> None:
    leader, follower, _ = make_ranks(architecture)
    slot, mate = leader.kv_cache.allocate(), leader.kv_cache.allocate()
    slot.keep_at = frozenset({6})
    leader.forward([Block(slot, list(range(9)), 1), Block(mate, [1, 2], 1)])
    leader.forward([Block(slot, [3, 4, 5], 3, num_provisional=2), Block(mate, [3, 4, 5], 3, num_provisional=3)])
    slot.truncate(10)
    mate.truncate(3)
    leader.forward([Block(slot, [7, 8], 2, num_provisional=1), Block(mate, [9], 1)])
    other = leader.kv_cache.allocate()
    leader.kv_cache.copy_prefix(slot, other, leader.kv_cache.keepable_len(slot, 8))
    assert other.length == 6
    leader.forward([Block(other, [7, 8], 2)])
    assert held(follower) == held(leader)
    own, others = (network.kv_cache.states._parts() for network in (leader, follower))
    for part, repeated in zip(own, others, strict=True):
        assert all(map(torch.equal, part.buffers, repeated.buffers))


def test_a_pass_in_which_ranks_hold_different_rows_is_noticed() -> None:
    leader, follower, _ = make_ranks()
    slot = leader.kv_cache.allocate()
    leader.forward([Block(slot, [1, 2, 3], 1)])
    follower.kv_cache.allocate()
    with pytest.raises(TensorParallelError, match="ranks use the same slots"):
        leader.forward([Block(slot, [4], 1)])


def test_nothing_is_noted_once_nobody_follows() -> None:
    leader, _, wire = make_ranks()
    slot = leader.kv_cache.allocate()
    leader.model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(TensorParallelError, match="division by zero"):
        leader.forward([Block(slot, [1], 1)])
    assert wire.failed
    leader.kv_cache.release(slot, erase=True)
    assert leader.kv_cache.take_noted() == []


def test_following_ends_when_rank_0_closes_and_fails_when_a_pass_does() -> None:
    leader, follower, wire = make_ranks()
    leader.forward([Block(leader.kv_cache.allocate(), [1, 2, 3], 1)])

    class Replay:
        rank = 1

        def __init__(self, *messages: Message) -> None:
            self._messages = iter(messages)

        def receive(self) -> Message:
            return next(self._messages)

    end = {"kind": "close"}
    fresh = ShardedLanguageModel(make_model("llama"), name="base")
    follow({"base": fresh}, Replay(*wire.sent, end))  # type: ignore[arg-type]
    with pytest.raises(TensorParallelError, match="rank 1: a forward pass of base failed"):
        follow({"base": follower}, Replay(*wire.sent, end))  # type: ignore[arg-type]
    assert follower.model.config._attn_implementation == make_model("llama").config._attn_implementation


@pytest.mark.parametrize(
    ("config", "num_ranks", "reason"),
    [
        (LlamaConfig(**HEADS), 2, None),
        (LlamaConfig(**HEADS), 4, "4 heads and 2 key/value heads cannot be dealt out to 4 ranks"),
        (LlamaConfig(**HEADS), 3, "cannot be dealt out to 3 ranks"),
        (Phi3Config(**HEADS, pad_token_id=0), 4, None),  # its plan gathers the heads again
        (GPT2Config(), 2, "has no tensor-parallel plan"),
    ],
)
def test_what_cannot_be_split_is_known_beforehand(config: Any, num_ranks: int, reason: str | None) -> None:
    found = why_not_split(config, num_ranks)
    assert found is None if reason is None else reason in str(found)
