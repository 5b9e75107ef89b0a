"""Prompts that were read before are not read again, and the text does not notice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eft_engine import Engine, SamplingParams, SpeculationOptions
from eft_engine.engine.prefix_cache import MIN_SHARED_LEN, common_prefix_len
from tests.toy import WITH_STATES, ToyTrio, architectures, make_trio, naive_greedy, wait_until_idle

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


def letters(count: int) -> list[str]:
    """Prompts that share no beginning."""
    return [chr(ord("A") + index) * 40 for index in range(count)]


def test_sixteen_conversations_of_a_trio_are_kept_and_one_more_takes_the_place_of_the_oldest() -> None:
    one_token = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    with make_trio("llama").engine() as engine:
        num_networks = len(engine.stats().networks)

        def cached(prompt: str) -> int:
            output = engine.generate(prompt, sampling=one_token, reward_weights=0.5)
            wait_until_idle(engine)
            return output.usage.cached_prompt_tokens

        first, *others = letters(17)
        assert [cached(prompt) for prompt in (first, *others)] == [0] * 17
        assert engine.stats().num_warm_prefixes == 16
        assert sum(slot is not None for network in engine._trio.networks for slot in network.kv_cache._slots) == (
            16 * num_networks
        )
        assert [cached(prompt) for prompt in others] == [39] * 16
        assert cached(first) == 0
        assert cached(others[0]) == 0, "it was the oldest by then"


def test_conversation_counts_once_until_its_last_slot_is_taken_over() -> None:
    """The base alone goes on with it for a turn, then all three do."""
    with make_trio("llama").engine() as engine:
        counts, cached = [], []
        for weight in (0.5, 0.0, 0.5):
            output = engine.generate(SYSTEM, sampling=GREEDY, reward_weights=weight)
            wait_until_idle(engine)
            cached.append(output.usage.cached_prompt_tokens)
            counts.append(engine.stats().num_warm_prefixes)
        assert cached == [0, len(SYSTEM) - 1, len(SYSTEM) - 1]
        assert counts == [1, 2, 1], "the pair's slots, and what the base has read since, are two"


def test_slots_of_a_conversation_are_given_back_together() -> None:
    with make_trio("llama").engine(max_warm_prefixes=1) as engine:
        engine.generate(SYSTEM, sampling=GREEDY, reward_weights=0.0)
        engine.generate("a" * 40, sampling=GREEDY, reward_weights=0.5)
        engine.generate("b" * 40, sampling=GREEDY, reward_weights=0.5)
        wait_until_idle(engine)
        assert (engine.stats().num_warm_prefixes, slots_in_use(engine)) == (1, [1, 1, 1])
        assert engine.generate("b" * 40, sampling=GREEDY, reward_weights=0.5).usage.cached_prompt_tokens == 39


def test_what_one_network_read_does_not_push_out_what_all_did() -> None:
    with make_trio("llama").engine(max_warm_prefixes=2) as engine:
        engine.generate(SYSTEM, sampling=GREEDY, reward_weights=0.5)
        for letter in "abc":
            engine.generate(letter * 40, sampling=GREEDY, reward_weights=0.0)
        wait_until_idle(engine)
        assert (engine.stats().num_warm_prefixes, slots_in_use(engine)) == (2, [2, 1, 1])
        again = engine.generate(SYSTEM, sampling=GREEDY, reward_weights=0.5)
        assert again.usage.cached_prompt_tokens >= MIN_SHARED_LEN


def slots_in_use(engine: Engine) -> list[int]:
    """Of each network."""
    return [sum(slot is not None for slot in network.kv_cache._slots) for network in engine._trio.networks]


def test_no_more_conversations_stay_warm_than_allowed() -> None:
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


@dataclass(frozen=True)
class Asked:
    """An engine, and the loop that judges it."""

    engine: Engine
    judge: ToyTrio

    def expected(self, prompt: str, *, weight: float = 0.5, max_tokens: int = 8) -> list[int]:
        """The right answer."""
        ids = self.judge.tokenizer.encode(prompt)
        return naive_greedy(self.judge, ids, weight=weight, max_tokens=max_tokens, stop_at_end=False)

    def cached(self, prompt: str, *, weight: float = 0.5, max_tokens: int = 8) -> int:
        """How many tokens of a prompt are not read again. The answer is right."""
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        output = self.engine.generate(prompt, sampling=sampling, reward_weights=weight)
        wait_until_idle(self.engine)
        assert list(output.token_ids) == self.expected(prompt, weight=weight, max_tokens=max_tokens)
        return output.usage.cached_prompt_tokens


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.only_torch) for name in WITH_STATES])
def hybrid(request: pytest.FixtureRequest) -> Iterator[Asked]:
    """States cannot be cut: a beginning is shared where one was kept. Drafts are read and taken back all the time."""
    drafting = SpeculationOptions(drafter="tuned", adaptive=False, max_draft_tokens=3)
    with make_trio(request.param).engine(speculation=drafting, prefill_chunk_len=40) as engine:
        yield Asked(engine, make_trio(request.param))


def test_a_network_with_states_goes_on_from_the_end_of_a_prompt_and_of_a_text(hybrid: Asked) -> None:
    assert hybrid.cached(SYSTEM) == 0
    assert hybrid.cached(SYSTEM) == len(SYSTEM) - 1  # the same prompt again
    wanted = hybrid.judge.tokenizer.encode("a")[0]
    repeating = SamplingParams(temperature=0.0, max_tokens=8, logit_bias={wanted: 1000.0})
    written = hybrid.engine.generate(SYSTEM, sampling=repeating, reward_weights=0.5)
    wait_until_idle(hybrid.engine)
    assert written.text == "a" * 8
    # The last token that was written has not been read.
    assert hybrid.cached(SYSTEM + written.text + " And then?") == len(SYSTEM) + 7


def test_the_third_that_shares_a_beginning_starts_where_the_second_left_it(hybrid: Asked) -> None:
    """The first did not know that others would leave it there."""
    cached = [hybrid.cached(SYSTEM + question) for question in ("Why is it?", "How many?", "Then?", "Or not?")]
    assert cached == [0, 0, len(SYSTEM), len(SYSTEM)]
    assert hybrid.cached(SYSTEM[:40] + "!") == 0  # no state was kept there


def test_states_are_kept_of_every_network_that_a_request_runs(hybrid: Asked) -> None:
    """At weight 0 that is the base alone."""
    assert hybrid.cached(SYSTEM, weight=0.0) == 0
    assert hybrid.cached(SYSTEM, weight=0.0) == len(SYSTEM) - 1
    assert hybrid.cached(SYSTEM, weight=1.0) == 0  # the pair has read nothing yet
    assert hybrid.cached(SYSTEM, weight=0.5) == len(SYSTEM) - 1
