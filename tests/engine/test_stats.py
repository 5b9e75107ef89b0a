"""`Engine.stats` agrees with what the requests themselves report."""

from __future__ import annotations

import pytest

from eft_engine import SamplingParams, SpeculationOptions
from eft_engine.errors import NonFiniteLogitsError
from tests.toy import VOCAB_SIZE, make_trio, wait_until_idle

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


def test_totals_are_the_sums_of_the_requests() -> None:
    with make_trio("llama").engine(max_warm_prefixes=4) as engine:
        assert engine.stats().num_finished == 0
        lookup = SpeculationOptions(drafter="prompt_lookup", adaptive=False)
        outputs = engine.generate(["abcabcabc " * 4, "the cat", "x"], sampling=GREEDY, speculation=lookup)
        stats = engine.stats()
        assert stats.num_finished == len(outputs)
        assert (stats.num_failed, stats.num_cancelled) == (0, 0)
        assert stats.prompt_tokens == sum(output.usage.prompt_tokens for output in outputs)
        assert stats.completion_tokens == sum(output.usage.completion_tokens for output in outputs)
        assert stats.num_drafted == sum(output.metrics.num_drafted for output in outputs) > 0
        assert stats.num_accepted == sum(output.metrics.num_accepted for output in outputs)
        assert stats.num_steps == sum(output.metrics.num_steps for output in outputs)
        assert [network.members for network in stats.networks] == [("base",), ("chat.tuned",), ("chat.reference",)]
        for network in stats.networks:
            assert network.num_forwards > 0
            assert network.num_tokens >= stats.prompt_tokens
            assert network.host_s > 0
            assert network.kv_cache_bytes > 0
        assert stats.kv_cache_bytes == sum(network.kv_cache_bytes for network in stats.networks)
        wait_until_idle(engine)
        assert engine.stats().num_warm_prefixes == 1, "the long prompt stays warm, in all three networks"


def test_members_that_are_not_needed_have_no_passes() -> None:
    with make_trio("llama").engine() as engine:
        engine.generate("abc", sampling=GREEDY, reward_weights=0.0)
        base, *pair = engine.stats().networks
        assert base.num_forwards > 0
        assert [network.num_forwards for network in pair] == [0, 0]


def test_failed_and_cancelled_requests_are_counted_apart() -> None:
    with make_trio("llama").engine() as engine:
        forbidden = {token_id: -float("inf") for token_id in range(VOCAB_SIZE)}
        with pytest.raises(NonFiniteLogitsError):
            engine.generate("abc", sampling=GREEDY.model_copy(update={"logit_bias": forbidden}))
        stream = engine.stream("abc", sampling=GREEDY.model_copy(update={"max_tokens": 200}))
        next(stream)
        stream.close()
        engine.generate("abc", sampling=GREEDY)
        wait_until_idle(engine)
        stats = engine.stats()
        assert (stats.num_finished, stats.num_failed, stats.num_cancelled) == (1, 1, 1)
        assert stats.completion_tokens < 8 + 200
