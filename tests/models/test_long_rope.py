"""Rotary factors for short and for long texts (Phi-3, Phi-4-mini): each row has those of its own text, read alone."""

from __future__ import annotations

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from eft_engine import Engine, LoadedPair, SamplingParams, SpeculationOptions
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.network import Block
from tests.models.ragged import Reader, some_ids
from tests.toy import ToyTrio, make_tokenizer, naive_greedy, shape_of

SWITCH = 24
"""The longest text with the factors for short ones."""


def make_phi3(*, hidden_size: int = 32, seed: int = 0) -> Phi3ForCausalLM:
    """Two sets of factors that are far apart."""
    torch.manual_seed(seed)
    size = hidden_size // 8
    rope = {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "short_factor": [1.0] * size,
        "long_factor": [float(3 + place) for place in range(size)],
        "original_max_position_embeddings": SWITCH,
        "partial_rotary_factor": 1.0,
    }
    lengths = {"rope_parameters": rope, "original_max_position_embeddings": SWITCH}
    return Phi3ForCausalLM(Phi3Config(**shape_of(hidden_size), **lengths)).eval()


@pytest.fixture
def reader() -> Reader:
    """A network and its judge."""
    return Reader(LanguageModel(make_phi3(), name="phi3"), make_phi3())


def test_the_factors_are_felt(reader: Reader) -> None:
    """What a short text says changes with tokens behind the switch: so much that a wrong set would be seen."""
    token_ids = some_ids(SWITCH + 1)
    short, long = reader.expected(token_ids[:-1]), reader.expected(token_ids)[:-1]
    assert (short - long).abs().max() > 0.05 * short.abs().max()


def test_a_short_text_says_the_same_beside_a_long_one(reader: Reader) -> None:
    long, short = reader.start(least_len=SWITCH + 10), reader.start()
    reader.read((long, some_ids(SWITCH + 10)), (short, some_ids(4, start=1)))
    for number in range(3):
        reader.read((short, some_ids(2, start=number)), (long, some_ids(1, start=number)))
    assert reader.worst < 1e-4


def test_a_long_prompt_is_read_in_chunks_with_the_factors_of_all_of_it(reader: Reader) -> None:
    prompt = some_ids(SWITCH + 14)
    slot = reader.start(least_len=len(prompt))
    for start in range(0, len(prompt), 10):
        reader.read((slot, prompt[start : start + 10]))
    reader.read((slot, [5]))
    assert reader.worst < 1e-4


def test_a_text_passes_the_switch_while_it_is_written(reader: Reader) -> None:
    slot, mate = reader.start(), reader.start()
    reader.read((slot, some_ids(SWITCH - 2)), (mate, some_ids(3)))
    for number in range(5):
        reader.read((mate, [number]), (slot, [number + 7]))
    assert slot.length == SWITCH + 3
    assert reader.worst < 1e-4


def test_drafts_may_lie_across_the_switch_and_be_taken_back_below_it(reader: Reader) -> None:
    slot, mate = reader.start(), reader.start()
    reader.read((slot, some_ids(SWITCH - 3)), (mate, some_ids(SWITCH - 1)))
    for kept in (SWITCH - 1, SWITCH + 1, SWITCH, SWITCH + 4):
        reader.read((slot, some_ids(SWITCH + 5 - slot.length, start=kept)), (mate, [kept]), drafts=20)
        reader.keep_length(slot, kept)
        reader.keep_length(mate, SWITCH - 1)
    reader.read((slot, [1]), (mate, [2]))
    assert reader.worst < 1e-4


@pytest.mark.parametrize(("source_len", "shared_len", "target_len"), [(40, 10, 12), (20, 15, 40), (40, 30, 41)])
def test_a_text_begins_like_another_of_another_length(
    reader: Reader, source_len: int, shared_len: int, target_len: int
) -> None:
    source = reader.start(least_len=source_len)
    reader.read((source, some_ids(source_len)))
    target = reader.start()
    reader.network.kv_cache.copy_prefix(source, target, shared_len)
    target.least_len = target_len
    reader.texts[target] = reader.texts[source][:shared_len]
    reader.read((target, some_ids(target_len - shared_len, start=1)), (source, [1]))
    reader.read((source, [2]), (target, [3]))
    assert reader.worst < 1e-4


def test_wanted_logits_come_in_the_order_of_the_blocks(reader: Reader) -> None:
    """Of blocks that are cut at the switch too."""
    network = reader.network
    texts = [some_ids(count, start=count) for count in (SWITCH + 3, 5, SWITCH + 1)]
    slots = [network.kv_cache.allocate() for _ in texts]
    blocks = [Block(slot, ids, count) for slot, ids, count in zip(slots, texts, (5, 2, 0), strict=True)]
    said = network.forward(blocks)
    first = [reader.expected(texts[0][:length])[-1] for length in range(SWITCH - 1, SWITCH + 4)]
    torch.testing.assert_close(said, torch.stack([*first, *reader.expected(texts[1])[-2:]]), rtol=1e-4, atol=1e-4)


def test_release_gives_the_choice_back() -> None:
    model = make_phi3()
    with torch.inference_mode():
        before = [model(torch.tensor([some_ids(count)])).logits for count in (5, SWITCH + 5)]
        network = LanguageModel(model, name="phi3")
        network.forward([Block(network.kv_cache.allocate(), some_ids(SWITCH + 5), 1)])
        network.release()
        after = [model(torch.tensor([some_ids(count)])).logits for count in (5, SWITCH + 5)]
    assert "forward" not in vars(model.model.rotary_emb)
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("drafter", ["none", "tuned"])
def test_an_engine_writes_across_the_switch(drafter: str) -> None:
    """Short prompts, one that outgrows the switch, a long one in chunks, and the same again from warm prefixes."""
    base, tuned, reference = (make_phi3(hidden_size=size, seed=seed) for size, seed in ((64, 1), (32, 2), (32, 3)))
    trio = ToyTrio(base, tuned, reference, make_tokenizer())
    prompts = ["a", "b" * (SWITCH - 6), "c" * (SWITCH - 6) + "d", "c" * (SWITCH - 6) + "e" * 30]
    greedy = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    expected = [
        naive_greedy(trio, trio.tokenizer.encode(prompt), weight=0.5, max_tokens=12, stop_at_end=False)
        for prompt in prompts
    ]
    speculation = SpeculationOptions.model_validate({"drafter": drafter, "adaptive": False, "max_draft_tokens": 4})
    with Engine.from_models(
        trio.base, tokenizer=trio.tokenizer, pairs={"chat": LoadedPair(trio.tuned, trio.reference)}
    ) as engine:
        for order in (slice(None), slice(None, None, -1)):
            outputs = engine.generate(prompts[order], sampling=greedy, reward_weights=0.5, speculation=speculation)
            assert [list(output.token_ids) for output in outputs] == expected[order]
