"""Prompts that were read before are not read again, and the text does not notice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eft_engine import SamplingParams, SpeculationOptions
from eft_engine.engine.prefix_cache import common_prefix_len
from tests.toy import WITH_STATES, architectures, make_trio, naive_greedy

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
SYSTEM = "You are a helpful assistant who answers in verse and never in prose, whatever the question may be. "


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix_is_that_of_counting(first: list[int], second: list[int]) -> None:
    counted = 0
    while counted < min(len(first), len(second)) and first[counted] == second[counted]:
        counted += 1
    assert common_prefix_len(first, second) == counted


@pytest.mark.parametrize("architecture", [name for name in architectures() if name not in WITH_STATES])
def test_next_turn_of_a_conversation_reads_only_what_is_new(architecture: str) -> None:
    trio = make_trio(architecture)
    with trio.engine() as engine:
        first = engine.generate(SYSTEM, sampling=GREEDY, reward_weights=0.5)
        longer = SYSTEM + trio.tokenizer.decode(first.token_ids[:4])
        second = engine.generate(longer, sampling=GREEDY, reward_weights=0.5)
    assert first.usage.cached_prompt_tokens == 0
    assert second.usage.cached_prompt_tokens >= len(SYSTEM)
    ids = trio.tokenizer.encode(longer)
    assert list(second.token_ids) == naive_greedy(trio, ids, weight=0.5, max_tokens=8, stop_at_end=False)


def test_rows_that_share_a_beginning_read_it_once() -> None:
    trio = make_trio("llama")
    prompts = [SYSTEM + question for question in ("Why?", "How?", "When?", "Who?")]
    with trio.engine() as engine:
        together = engine.generate(prompts, sampling=GREEDY, reward_weights=[0.0, 0.5, 1.0, 2.0])
    assert [out.usage.cached_prompt_tokens >= len(SYSTEM) for out in together].count(True) >= 1
    expected = [
        naive_greedy(trio, trio.tokenizer.encode(prompt), weight=weight, max_tokens=8, stop_at_end=False)
        for prompt, weight in zip(prompts, [0.0, 0.5, 1.0, 2.0], strict=True)
    ]
    assert [list(out.token_ids) for out in together] == expected


def test_equal_prompts_that_arrive_together_are_read_once() -> None:
    with make_trio("llama").engine() as engine:
        outs = engine.generate([SYSTEM] * 4, sampling=GREEDY, reward_weights=0.5)
    assert len({out.token_ids for out in outs}) == 1
    assert [out.usage.cached_prompt_tokens for out in outs] == [0, *[len(SYSTEM) - 1] * 3]


def test_a_slot_is_copied_when_another_conversation_needs_the_rest_of_it() -> None:
    trio = make_trio("llama")
    long = SYSTEM + "x" * 120
    with trio.engine() as engine:
        engine.generate(long, sampling=GREEDY)
        other = engine.generate(SYSTEM + "Why?", sampling=GREEDY)
        again = engine.generate(long, sampling=GREEDY)
    assert other.usage.cached_prompt_tokens == len(SYSTEM)
    assert again.usage.cached_prompt_tokens == len(long) - 1


def test_no_more_slots_stay_warm_than_allowed() -> None:
    trio = make_trio("llama")
    with trio.engine(max_warm_prefixes=2) as engine:
        for letter in "abcdef":
            engine.generate(letter * 40, sampling=GREEDY, reward_weights=0.0)
        assert engine.generate("a" * 40, sampling=GREEDY, reward_weights=0.0).usage.cached_prompt_tokens == 0
        assert engine.generate("f" * 40, sampling=GREEDY, reward_weights=0.0).usage.cached_prompt_tokens == 39
    with trio.engine(max_warm_prefixes=0) as engine:
        engine.generate("a" * 40, sampling=GREEDY)
        assert engine.generate("a" * 40, sampling=GREEDY).usage.cached_prompt_tokens == 0


def test_rejected_drafts_do_not_stay_in_a_warm_slot() -> None:
    trio = make_trio("llama")
    drafting = SpeculationOptions(drafter="tuned", adaptive=False, max_draft_tokens=5)
    with trio.engine() as engine:
        first = engine.generate(SYSTEM, sampling=GREEDY, speculation=drafting)
        longer = SYSTEM + trio.tokenizer.decode(first.token_ids)
        second = engine.generate(longer, sampling=GREEDY, speculation=drafting)
    ids = trio.tokenizer.encode(longer)
    assert list(second.token_ids) == naive_greedy(trio, ids, weight=1.0, max_tokens=8, stop_at_end=False)
