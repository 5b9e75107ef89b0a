"""Layers with a state say what full recomputation says, whatever was taken back, kept, copied, moved or broken off before."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eft_engine.models.language_model import LanguageModel
from eft_engine.models.network import Block
from eft_engine.models.slot_states import MAX_KEPT
from eft_engine.models.state_rows import StateSlot
from eft_engine.models.states import STEPWISE_LEN
from tests.choice import thorough_but
from tests.models.hybrid_models import HYBRIDS, VOCAB_SIZE, make_hybrid
from tests.toy import make_model

TOLERANCE = 1e-3


class Texts:
    """What the slots of a network hold, and the same model without a cache as the judge."""

    def __init__(self, name: str, *, seed: int = 0) -> None:
        self.plain: PreTrainedModel = make_hybrid(name)
        self.network = LanguageModel(make_hybrid(name), name=name, self_check=False)
        self.chance = random.Random(f"{name} {seed}")
        self.rows: dict[StateSlot, list[int]] = {}
        self.worst = 0.0
        self.done: Counter[str] = Counter()

    def new_ids(self, count: int) -> list[int]:
        """Tokens that nobody has seen."""
        return [self.chance.randrange(VOCAB_SIZE) for _ in range(count)]

    def start(self, count: int = 0) -> StateSlot:
        """A slot that has read so many tokens."""
        slot = self.network.kv_cache.allocate()
        self.rows[slot] = []
        if count:
            self.read((slot, count, 0))
        return slot

    def read(self, *wanted: tuple[StateSlot, int, int], num_logits: int | None = None) -> None:
        """Feed to each slot so many new tokens, the last of which may be taken back, and compare what is said."""
        blocks = []
        for slot, count, provisional in wanted:
            new = self.new_ids(count)
            self.rows[slot] += new
            logits = self.chance.randint(0, count) if num_logits is None else num_logits
            blocks.append(Block(slot, new, logits, num_provisional=provisional))
        said = list(self.network.forward(blocks))
        for block in blocks:
            assert isinstance(block.slot, StateSlot)
            expected = self.expected(self.rows[block.slot])
            for row in expected[len(expected) - block.num_logits :]:
                self.worst = max(self.worst, ((said.pop(0) - row).abs().max() / expected.abs().max()).item())
        assert not said
        assert all(slot.length == len(token_ids) for slot, token_ids in self.rows.items())

    @torch.inference_mode()
    def expected(self, token_ids: list[int]) -> Tensor:
        """Logits `[len(token_ids), vocab]`."""
        logits: Tensor = self.plain(torch.tensor([token_ids]), use_cache=False).logits[0]
        return logits

    def keep_length(self, slot: StateSlot, length: int) -> None:
        """Take back what is behind."""
        slot.truncate(length)
        del self.rows[slot][length:]

    def copy(self, source: StateSlot, length: int) -> StateSlot:
        """Another slot that begins like this one, for as long as can be, up to `length`."""
        cache = self.network.kv_cache
        target = self.start()
        common = cache.keepable_len(source, length)
        cache.copy_prefix(source, target, common)
        self.rows[target] = self.rows[source][:common]
        return target

    def one_step(self) -> None:
        """Anything that an engine does."""
        chance, cache = self.chance, self.network.kv_cache
        if len(self.rows) < 4 and chance.random() < 0.4:
            self.start()
        if self.rows and chance.random() < 0.3:
            slot = chance.choice(list(self.rows))
            cache.release(slot)
            del self.rows[slot]
        if chance.random() < 0.1:
            cache.trim()
        sources = [slot for slot in self.rows if slot.length]
        if sources and len(self.rows) < 5 and chance.random() < 0.6:
            source = chance.choice(sources)
            self.done["copied"] += (
                self.copy(source, chance.choice([source.length, chance.randint(0, source.length)])).length > 0
            )
        wanted = []
        for slot in chance.sample(list(self.rows), chance.randint(0, len(self.rows))):
            count = chance.choice([1, 1, 2, 3, 4, 7, 20, 30])
            if chance.random() < 0.3:
                slot.keep_at = frozenset({slot.length + chance.randint(1, 30)})
            wanted.append((slot, count, min(count, chance.choice([0, 0, 1, 2, 4, 8]))))
        if not wanted:
            return
        self.read(*wanted)
        for slot, count, provisional in wanted:
            self.done["pending alone"] += count == provisional > 0
            if provisional and chance.random() < 0.7:
                refused = chance.randint(0, provisional)
                self.done["taken back"] += refused > 0
                self.keep_length(slot, slot.length - refused)


@pytest.mark.parametrize("seed", thorough_but(range(2), often=("0",)))
@pytest.mark.parametrize("name", HYBRIDS)
def test_random_schedule_equals_recomputation(name: str, seed: int) -> None:
    texts = Texts(name, seed=seed)
    for _ in range(45):
        texts.one_step()
    assert texts.worst < TOLERANCE
    assert all(texts.done[what] > 1 for what in ("copied", "pending alone", "taken back")), (
        "the schedule has everything"
    )


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_state_that_is_wrong_would_be_seen(name: str) -> None:
    """Of the schedules' tolerance: another first token is seen 40 tokens later."""
    texts = Texts(name)
    token_ids = texts.new_ids(40)
    said = [texts.expected([first, *token_ids])[-1] for first in (1, 2)]
    assert ((said[0] - said[1]).abs().max() / said[0].abs().max()).item() > 10 * TOLERANCE


@pytest.mark.parametrize("length", [5, 3 + STEPWISE_LEN, 29])
def test_a_state_is_kept_where_others_may_begin(length: int) -> None:
    """In the middle of a long block, near its end, and at its end but one."""
    texts = Texts("qwen3_next")
    texts.start(3)  # states are known from the first pass on
    slot = texts.start()
    slot.keep_at = frozenset({length})
    texts.read((slot, 30, 0), num_logits=1)
    cache = texts.network.kv_cache
    assert [cache.keepable_len(slot, wanted) for wanted in (length - 1, length, 29, 30)] == [0, length, length, 30]
    other = texts.copy(slot, 29)
    assert other.length == length
    texts.read((other, 4, 0), (slot, 2, 0), num_logits=2)
    assert texts.worst < TOLERANCE


def test_the_oldest_copies_go_first() -> None:
    texts = Texts("lfm2")
    slot = texts.start(2)
    lengths = [4 + 2 * number for number in range(MAX_KEPT + 1)]
    for number, length in enumerate(lengths):
        slot.keep_at = frozenset({length})
        texts.read((slot, 2, 0))
        assert list(slot.kept) == lengths[max(0, number + 1 - MAX_KEPT) : number + 1]


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_pass_that_fails_in_the_middle_leaves_what_was_kept(name: str) -> None:
    texts = Texts(name)
    fresh, warm, idle = texts.start(6), texts.start(2), texts.start(9)
    warm.keep_at = frozenset({8})
    texts.read((warm, 20, 0))
    texts.read((warm, 3, 2))
    last = next(module for module in reversed(list(texts.network.model.modules())) if isinstance(module, nn.ModuleList))

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    hook = last[len(last) - 1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        texts.network.forward([Block(slot, texts.new_ids(3), 1, num_provisional=1) for slot in (fresh, warm)])
    hook.remove()
    assert (fresh.length, warm.length, idle.length) == (0, 8, 9)
    for slot in (fresh, warm):
        del texts.rows[slot][slot.length :]
    texts.read((fresh, 4, 1), (warm, 2, 1), (idle, 1, 0), num_logits=1)
    texts.keep_length(warm, warm.length - 1)
    texts.read((idle, 2, 0), (warm, 3, 0), (fresh, 1, 0), num_logits=1)
    assert texts.worst < TOLERANCE


def test_what_was_settled_cannot_be_taken_back() -> None:
    """An engine that asks for it has made a mistake, and hears of it instead of reading from a wrong state."""
    texts = Texts("falcon_h1")
    slot = texts.start(6)
    texts.keep_length(slot, 5)
    with pytest.raises(AssertionError, match="no state was kept at 5"):
        texts.read((slot, 1, 0))


def test_going_back_to_the_start_or_to_a_copy_is_always_possible() -> None:
    texts = Texts("falcon_h1")
    slot = texts.start(3)
    slot.keep_at = frozenset({7})
    texts.read((slot, 9, 0))
    texts.keep_length(slot, 7)
    texts.read((slot, 4, 0), num_logits=4)
    texts.keep_length(slot, 0)
    texts.read((slot, 4, 0), num_logits=4)
    assert texts.worst < TOLERANCE


def test_erasing_silences_nan_for_the_next_user_of_the_slot() -> None:
    texts = Texts("qwen3_next")
    other, slot = texts.start(4), texts.start(4)
    states = texts.network.kv_cache.states
    with torch.inference_mode():
        for part in (*states._convolutions.values(), *states._recurrences.values()):
            for buffer in part.buffers:
                buffer[slot.index] = torch.nan
    texts.network.kv_cache.release(slot, erase=True)
    del texts.rows[slot]
    again = texts.start()
    assert again.index == 1
    texts.read((other, 3, 1), (again, 1, 0), num_logits=1)
    texts.read((other, 1, 0), (again, 5, 2), num_logits=1)
    assert texts.worst < TOLERANCE


def test_bytes_are_those_of_the_states_and_of_copies_that_are_kept() -> None:
    """A copy that two slots begin from is held once."""
    texts = Texts("mamba")
    cache = texts.network.kv_cache
    slot = texts.start(4)
    # layers x (inner channels x (kernel width + states)) x float32
    one_slot = 2 * 64 * (4 + 8) * 4
    assert (cache.num_bytes, cache.states.bytes_per_slot) == (one_slot, (1 + MAX_KEPT) * one_slot)
    texts.copy(slot, 4)
    texts.read((slot, 1, 0))
    assert (cache.num_bytes, cache.num_slots) == (2 * one_slot + one_slot, 2)


def test_a_network_knows_whether_it_has_states_when_it_has_read() -> None:
    hybrid, attention = Texts("lfm2").network, LanguageModel(make_model("llama"), name="toy")
    assert (hybrid.has_state, attention.has_state) == (False, False)
    hybrid.forward([Block(hybrid.kv_cache.allocate(), [1], 1)])
    assert (hybrid.has_state, attention.has_state) == (True, False)
