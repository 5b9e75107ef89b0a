"""Networks of the kernels, judged by transformers' own forward pass; equal to the bit however a text is read."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from eft_engine import Engine, EngineConfig, SamplingParams, SpeculationOptions, TunedPair
from eft_engine.config import Quantization
from eft_engine.errors import InvalidOptionError, UnsupportedModelError
from eft_engine.models.native.families import NotForKernelsError
from eft_engine.models.native.library import PAGE
from eft_engine.models.native.network import NativeLanguageModel, native_network
from eft_engine.models.native.pages import CHUNK
from eft_engine.models.native.passes import MAX_ROWS
from eft_engine.models.network import Block
from tests.toy import make_model, make_trio, save_adapter, save_trio

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3")
TEXT = [(7 * index + 3) % 250 for index in range(90)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


def network_of(
    model: PreTrainedModel, *, keep_weights: bool = True, quantization: Quantization = "none"
) -> NativeLanguageModel:
    """The model in the kernels."""
    return native_network(model, name="base", self_check=True, keep_weights=keep_weights, quantization=quantization)


def read(network: NativeLanguageModel, *lengths: int) -> torch.Tensor:
    """Logits behind every token of `TEXT`, which is read in blocks of these lengths."""
    slot = network.kv_cache.allocate()
    rows, start = [], 0
    for length in lengths:
        rows.append(network.forward([Block(slot, TEXT[start : start + length], length)]))
        start += length
    network.kv_cache.release(slot)
    return torch.cat(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_says_what_transformers_says(family: str) -> None:
    model = make_model(family)
    with torch.inference_mode():
        expected = model(torch.tensor([TEXT]), use_cache=False).logits[0]
    found = read(network_of(model), len(TEXT))
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_company_and_threads_change_no_bit(family: str, dtype: torch.dtype) -> None:
    network = network_of(make_model(family).to(dtype))
    whole = read(network, len(TEXT))
    assert torch.equal(read(network, *[1] * 20, 7, 33, 5, 25), whole)
    slots = [network.kv_cache.allocate() for _ in range(5)]
    network.forward([Block(slot, TEXT[: 3 * index + 1], 0) for index, slot in enumerate(slots)])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        rows = network.forward([Block(slot, TEXT[slot.length : slot.length + 4], 4) for slot in reversed(slots)])
    finally:
        torch.set_num_threads(before)
    for index, own in zip(reversed(range(5)), rows.split(4), strict=True):
        assert torch.equal(own, whole[3 * index + 1 : 3 * index + 5])


def test_what_is_taken_back_leaves_nothing() -> None:
    network = network_of(make_model("gemma3"))
    whole, slot, chance = read(network, len(TEXT)), network.kv_cache.allocate(), random.Random(0)
    while slot.length < len(TEXT):
        number = min(chance.randint(1, 9), len(TEXT) - slot.length)
        start = slot.length
        wrong = [token_id ^ 1 for token_id in TEXT[start + number : start + number + 5]]
        rows = network.forward([Block(slot, [*TEXT[start : start + number], *wrong], number + len(wrong))])
        assert torch.equal(rows[:number], whole[start : start + number])
        slot.truncate(start + number)


def test_long_blocks_are_computed_in_passes() -> None:
    model = make_model("llama", context_len=2048)
    text = [(11 * index + 5) % 250 for index in range(2 * MAX_ROWS + 100)]
    with torch.inference_mode():
        expected = model(torch.tensor([text]), use_cache=False).logits[0]
    network = network_of(model)
    first, second = network.kv_cache.allocate(), network.kv_cache.allocate()
    rows = network.forward([Block(first, text, MAX_ROWS + 120), Block(second, text[:50], 1)])
    assert (rows[:-1] - expected[-MAX_ROWS - 120 :]).abs().max() < 1e-4 * expected.abs().max()
    assert (rows[-1] - expected[49]).abs().max() < 1e-4 * expected.abs().max()


def test_copied_beginnings_share_pages_until_somebody_writes() -> None:
    network = network_of(make_model("llama"))
    cache, whole = network.kv_cache, read(network, len(TEXT))
    first = cache.allocate()
    network.forward([Block(first, TEXT[:50], 0)])
    pages = {id(page) for page in first.pages}
    second = cache.allocate()
    cache.copy_prefix(first, second, 40)
    assert {id(page) for page in second.pages} <= pages
    own = network.forward([Block(second, [3, 4, 5], 3), Block(first, TEXT[50:60], 10)])
    assert torch.equal(own[3:], whole[50:60])  # the other wrote to a page of its own
    cache.release(first)
    third = cache.allocate()
    cache.copy_prefix(second, third, 40)
    assert torch.equal(network.forward([Block(third, TEXT[40:], 50)]), whole[40:])


def test_bytes_follow_the_tokens_held() -> None:
    network = network_of(make_model("llama", context_len=8192))
    cache, lengths = network.kv_cache, [200 + 387 * index for index in range(16)]
    slots = [cache.allocate() for _ in lengths]
    for slot, length in zip(slots, lengths, strict=True):
        network.forward([Block(slot, [5] * length, 0)])
    token_bytes = cache.page_bytes / PAGE
    assert cache.num_bytes <= 1.25 * sum(lengths) * token_bytes
    for slot in slots[:8]:
        cache.release(slot)
    cache.trim()
    assert cache.num_bytes <= (sum(lengths[8:]) + 16 * CHUNK * PAGE) * token_bytes
    assert cache.num_bytes_with([1000]) >= cache.num_bytes + 500 * token_bytes
    for slot in slots[8:]:
        cache.release(slot)
    cache.trim()
    assert cache.num_bytes == 0


def test_nan_stays_in_its_own_text() -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[251] = torch.nan
    network = network_of(model)
    sick, well = network.kv_cache.allocate(), network.kv_cache.allocate()
    rows = network.forward([Block(sick, [1, 251, 2], 3), Block(well, TEXT[:5], 5)])
    assert rows[1:3].isnan().all()
    assert rows[3:].isfinite().all()
    network.kv_cache.release(sick, erase=True)
    again = network.kv_cache.allocate()
    assert network.forward([Block(again, TEXT[:5], 5)]).isfinite().all()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_adapters_change_their_own_rows_alone(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    network = network_of(model, keep_weights=False)
    plain = read(network, len(TEXT))
    names = [
        network.with_adapter(save_adapter(make_model(family), tmp_path / str(seed), seed=seed), member="chat.tuned")[1]
        for seed in (1, 2)
    ]
    slots = [network.kv_cache.allocate() for _ in range(3)]
    rows = network.forward(
        [Block(slot, TEXT[:30], 30, adapter) for slot, adapter in zip(slots, (names[0], None, names[1]), strict=True)]
    ).split(30)
    assert torch.equal(rows[1], plain[:30])
    for own, adapter in ((rows[0], names[0]), (rows[2], names[1])):
        judge = network.own_logits(TEXT[:30], adapter=adapter)
        assert (own - judge).abs().max() < 1e-4 * judge.abs().max()
        assert (own - plain[:30]).abs().max() > 1e-2


def test_weights_are_given_back(tmp_path: Path) -> None:
    model, before = make_model("qwen2"), make_model("qwen2").state_dict()
    network = network_of(model, keep_weights=False)
    assert model.model.layers[0].mlp.up_proj.weight.isnan().all()
    network.release()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_rounded_weights_are_those_of_the_forward_pass_that_judges(quantization: Quantization) -> None:
    model = make_model("llama", hidden_size=64)
    with torch.inference_mode():
        plain = model(torch.tensor([TEXT]), use_cache=False).logits[0]
    network = network_of(model, keep_weights=False, quantization=quantization)
    found, judge = read(network, len(TEXT)), network.own_logits(TEXT)
    assert (found - judge).abs().max() < 2e-3 * judge.abs().max()
    assert (found - plain).abs().max() > 2e-3 * judge.abs().max(), "nothing was rounded"
    assert torch.equal(read(network, *[1] * len(TEXT)), found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: model.half(), "float16"),
        (lambda model: model.model.layers[0].register_forward_hook(lambda *_: None), "hooks"),
        (lambda model: setattr(model.model.layers[0].mlp, "act_fn", torch.nn.Tanh()), "activation"),
        (lambda model: setattr(model.model.layers[0], "mlp", torch.nn.Identity()), "stands where"),
        (lambda model: setattr(model.model.layers[1].mlp, "up_proj", model.model.layers[0].mlp.up_proj), "share"),
    ],
)
def test_what_is_not_exactly_its_family_is_for_torch(change: Any, words: str) -> None:
    model = make_model("llama")
    change(model)
    with pytest.raises((NotForKernelsError, AttributeError), match=rf"{words}|mlp|gate_proj"):
        network_of(model)


def test_others_are_computed_by_torch_and_cannot_be_rounded_or_deterministic() -> None:
    trio = make_trio("gpt2")
    with trio.engine() as engine:
        assert not any(network.is_invariant for network in engine._trio.networks)
    with pytest.raises(UnsupportedModelError, match="quantization_config"):
        trio.engine(quantization="int8")
    with pytest.raises(UnsupportedModelError, match="cpu_kernels"):
        trio.engine(deterministic=True)
    with pytest.raises(UnsupportedModelError, match="cpu_kernels is off"):
        make_trio("llama").engine(quantization="int4", cpu_kernels=False)


def test_rounding_is_for_a_cpu_and_for_weights_that_nobody_else_packs(tmp_path: Path) -> None:
    folders = save_trio(tmp_path)
    pair = TunedPair(folders["tuned"], folders["reference"])
    with Engine.load(folders["base"], pairs={"chat": pair}, config=EngineConfig(quantization="int8")) as engine:
        assert {member.dtype for member in engine.report().members} == {"int8"}
        assert engine.generate("a prompt", sampling=GREEDY).text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_is_a_function_of_request_and_seed(dtype: torch.dtype) -> None:
    """In any batch, with any drafter and chunks, streamed or whole, warm or not, on one thread or two."""
    trio = make_trio("llama")
    for model in (trio.base, trio.tuned, trio.reference):
        model.to(dtype)
    prompts = [f"{'A beginning that they share. ' * (index % 3)}And prompt {index}?" for index in range(8)]
    asked = [
        SamplingParams(temperature=0.8 * (index % 2), max_tokens=20, seed=index, ignore_eos=True) for index in range(8)
    ]
    with trio.engine(
        deterministic=True, max_num_seqs=1, max_warm_prefixes=0, speculation={"drafter": "none"}
    ) as engine:
        expected = [
            engine.generate(prompt, sampling=own, reward_weights=0.7).token_ids
            for prompt, own in zip(prompts, asked, strict=True)
        ]
    with trio.engine(deterministic=True, prefill_chunk_len=16) as engine:
        for drafting in (
            SpeculationOptions(),
            SpeculationOptions(drafter="tuned", adaptive=False, max_draft_tokens=5, min_confidence=0.0),
            SpeculationOptions(drafter="prompt_lookup", min_ngram_size=1),
        ):
            outputs = engine.generate(prompts, sampling=asked, reward_weights=0.7, speculation=drafting)
            assert [output.token_ids for output in outputs] == expected
        *_, last = engine.stream(prompts[3], sampling=asked[3], reward_weights=0.7)
        assert last.output is not None
        assert last.output.token_ids == expected[3]


def test_earlier_texts_of_the_engine_are_drafted_from() -> None:
    trio = make_trio("llama")
    lookup = SpeculationOptions(drafter="prompt_lookup", adaptive=False, min_ngram_size=6, max_ngram_size=6)
    prompts, plain = ["What was asked before?", "And then: what was asked before?"], SpeculationOptions(drafter="none")
    with trio.engine(max_warm_prefixes=0) as engine:
        expected = [engine.generate(prompt, sampling=GREEDY, speculation=plain).token_ids for prompt in prompts]
        first = engine.generate(prompts[0], sampling=GREEDY, speculation=lookup)
        again = engine.generate(prompts[0], sampling=GREEDY, speculation=lookup)
        other = engine.generate(prompts[1], sampling=GREEDY, speculation=lookup)
    assert [again.token_ids, other.token_ids] == [first.token_ids, expected[1]] == expected
    assert again.metrics.num_accepted > first.metrics.num_accepted + 10
    with trio.engine(max_warm_prefixes=0, draft_history_tokens=0) as engine:
        found = [engine.generate(prompts[0], sampling=GREEDY, speculation=lookup) for _ in range(2)]
    assert found[0].metrics.num_accepted == found[1].metrics.num_accepted


def test_bad_quantization_is_refused() -> None:
    with pytest.raises((InvalidOptionError, ValueError), match="int3"):
        EngineConfig.model_validate({"quantization": "int3"})
