"""A queue that is full refuses, a cache budget makes requests wait; neither changes any answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eft_engine import CompositionOptions, Engine, PromptPair, SamplingParams, SpeculationOptions
from eft_engine.errors import KVCacheBudgetError, QueueFullError
from eft_engine.models.kv_cache import SlotKVCache
from tests.engine.gate import Gate
from tests.toy import make_trio, wait_until_idle

PROMPTS = ["abc", "the cat sat on the mat", "x", "Hello, world! " * 4, "12345", "one two three"]
LONGEST = 96
"""Positions that no request of one of them passes."""
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


@pytest.fixture(
    scope="module", params=["llama", pytest.param("falcon_h1", marks=[pytest.mark.only_torch, pytest.mark.thorough])]
)
def architecture(request: pytest.FixtureRequest) -> str:
    """Attention alone, and with states beside it, which have memory of their own."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def expected(architecture: str) -> Iterator[list[tuple[int, ...]]]:
    """What every prompt gives without limits."""
    with make_trio(architecture).engine() as engine:
        yield [output.token_ids for output in engine.generate(PROMPTS, sampling=GREEDY)]


def kv_bytes(engine: Engine) -> int:
    """Bytes of all caches of an engine."""
    return sum(network.kv_cache.num_bytes for network in engine._trio.networks)


def bytes_of_one_request(engine: Engine) -> int:
    """Those that it holds behind one; but torch on a CPU gives them back when a request is over: there what one may need."""
    caches = [network.kv_cache for network in engine._trio.networks]
    needed = sum(cache.num_bytes_with([LONGEST]) for cache in caches if isinstance(cache, SlotKVCache))
    return max(kv_bytes(engine), needed)


def test_full_queue_refuses_and_what_was_queued_is_answered(
    architecture: str, expected: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_trio(architecture).engine(max_num_seqs=1, max_queued_requests=2) as engine:
        gate = Gate(monkeypatch, engine._trio.networks[0])
        streams = [engine.stream(PROMPTS[0], sampling=GREEDY)]
        assert gate.reached.wait(60)  # the first runs, the next two wait
        streams += [engine.stream(prompt, sampling=GREEDY) for prompt in PROMPTS[1:3]]
        with pytest.raises(QueueFullError, match="max_queued_requests is 2") as refused:
            engine.generate(PROMPTS[3], sampling=GREEDY)
        assert (refused.value.num_queued, refused.value.limit) == (2, 2)
        gate.open()
        answers = [tuple(token_id for delta in stream for token_id in delta.token_ids) for stream in streams]
        assert answers == expected[:3]
        assert engine.generate(PROMPTS[3], sampling=GREEDY).token_ids == expected[3]


def test_call_that_would_overfill_the_queue_queues_nothing(architecture: str, expected: list[tuple[int, ...]]) -> None:
    with make_trio(architecture).engine(max_queued_requests=2) as engine:
        with pytest.raises(QueueFullError, match="0 requests wait and 3 more came"):
            engine.generate(PROMPTS[:3], sampling=GREEDY)
        assert [output.token_ids for output in engine.generate(PROMPTS[:2], sampling=GREEDY)] == expected[:2]


def test_budget_makes_requests_wait_and_is_kept(architecture: str, expected: list[tuple[int, ...]]) -> None:
    with make_trio(architecture).engine() as engine:
        engine.generate("ab", sampling=GREEDY)
        one_request = bytes_of_one_request(engine)
        engine.generate(PROMPTS * 4, sampling=GREEDY)
        together = kv_bytes(engine)
    budget = (one_request + together) // 2
    assert together > budget, "without a budget this many requests take more"
    with make_trio(architecture).engine(max_kv_cache_bytes=budget) as engine:
        outputs = engine.generate(PROMPTS * 4, sampling=GREEDY)
        assert [output.token_ids for output in outputs] == expected * 4
        assert one_request <= kv_bytes(engine) <= budget


def test_warm_prefixes_give_way_to_requests(architecture: str, expected: list[tuple[int, ...]]) -> None:
    with make_trio(architecture).engine() as engine:
        engine.generate("ab", sampling=GREEDY)
        one_request = bytes_of_one_request(engine)
    with make_trio(architecture).engine(max_kv_cache_bytes=one_request, max_warm_prefixes=4) as engine:
        outputs = [engine.generate(prompt, sampling=GREEDY).token_ids for prompt in (*PROMPTS, "y" * 40, "z" * 40)]
        assert outputs[: len(expected)] == expected
        assert kv_bytes(engine) <= one_request


def test_request_that_cannot_fit_fails_and_the_others_do_not(
    architecture: str, expected: list[tuple[int, ...]]
) -> None:
    with make_trio(architecture, context_len=2048).engine() as engine:
        engine.generate("ab", sampling=GREEDY)
        one_request = bytes_of_one_request(engine)
    with make_trio(architecture, context_len=2048).engine(max_kv_cache_bytes=2 * one_request) as engine:
        with pytest.raises(KVCacheBudgetError, match="max_kv_cache_bytes allows") as refused:
            engine.generate("ab", sampling=SamplingParams(temperature=0.0, max_tokens=1500, ignore_eos=True))
        assert refused.value.needed_bytes > refused.value.max_bytes == 2 * one_request
        assert engine.generate(PROMPTS[0], sampling=GREEDY).token_ids == expected[0]


def test_every_stream_of_a_prompt_pair_counts(architecture: str, expected: list[tuple[int, ...]]) -> None:
    """All of them are on the base; counted as one slot there they would pass the budget by several."""
    sides = [PromptPair(positive=f"{number}" * 40, negative="x" * 40 + f"{number}") for number in range(4)]
    composition = CompositionOptions(prompt_pairs={f"p{number}": own for number, own in enumerate(sides)})
    with make_trio(architecture).engine() as engine:
        engine.generate("ab", sampling=GREEDY)
        one_request = bytes_of_one_request(engine)
    with make_trio(architecture).engine(max_kv_cache_bytes=one_request) as engine:
        with pytest.raises(KVCacheBudgetError, match="max_kv_cache_bytes allows"):
            engine.generate("ab", sampling=GREEDY, composition=composition)
        assert engine.generate(PROMPTS[0], sampling=GREEDY).token_ids == expected[0]
        assert kv_bytes(engine) <= one_request


def test_hundreds_of_queued_requests_take_no_more_cache_than_a_full_batch(
    architecture: str, expected: list[tuple[int, ...]]
) -> None:
    drafting = SpeculationOptions(drafter="tuned", adaptive=False, max_draft_tokens=3)
    number = 120 if architecture == "llama" else 36
    with make_trio(architecture).engine(max_num_seqs=4, max_warm_prefixes=0, speculation=drafting) as engine:
        engine.generate(PROMPTS[:4], sampling=GREEDY)
        wait_until_idle(engine)
        full_batch = kv_bytes(engine)
        outputs = engine.generate([PROMPTS[index % len(PROMPTS)] for index in range(number)], sampling=GREEDY)
        assert [output.token_ids for output in outputs] == [expected[index % len(expected)] for index in range(number)]
        wait_until_idle(engine)
        assert kv_bytes(engine) == full_batch
