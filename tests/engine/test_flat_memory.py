"""Many more requests than run together: all of them finish, and the cache stays as large as a batch of them needs."""

from __future__ import annotations

import pytest

from eft_engine import SamplingParams, SpeculationOptions
from tests.toy import make_trio, wait_until_idle

NUM_REQUESTS = 256
BATCH_SIZE = 8


@pytest.mark.parametrize("architecture", ["llama", pytest.param("lfm2", marks=pytest.mark.only_torch)])
def test_256_queued_requests_finish_in_the_memory_of_one_batch(architecture: str) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    prompts = [f"{index} is a number of {index % 7} words" for index in range(NUM_REQUESTS)]
    with make_trio(architecture).engine(
        max_num_seqs=BATCH_SIZE, max_warm_prefixes=0, speculation=SpeculationOptions(drafter="none")
    ) as engine:
        engine.generate(prompts[:BATCH_SIZE], sampling=sampling, reward_weights=0.5)
        wait_until_idle(engine)
        one_batch = [network.kv_cache_bytes for network in engine.stats().networks]
        outputs = engine.generate(prompts, sampling=sampling, reward_weights=0.5)
        wait_until_idle(engine)
        stats = engine.stats()
        assert [network.kv_cache_bytes for network in stats.networks] == one_batch
    assert [output.usage.completion_tokens for output in outputs] == [4] * NUM_REQUESTS
    assert (stats.num_finished, stats.num_failed) == (NUM_REQUESTS + BATCH_SIZE, 0)
    assert (stats.num_running, stats.num_waiting) == (0, 0)


def test_warm_prefixes_are_kept_up_to_their_limit_however_many_requests_come() -> None:
    sampling = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    prompts = [f"{index} begins a prompt of its own, long enough to be kept" for index in range(64)]
    with make_trio("llama").engine(max_num_seqs=BATCH_SIZE, max_warm_prefixes=6) as engine:
        engine.generate(prompts[:32], sampling=sampling, reward_weights=0.5)
        halfway = [network.kv_cache_bytes for network in engine.stats().networks]
        engine.generate(prompts[32:], sampling=sampling, reward_weights=0.5)
        stats = engine.stats()
    assert stats.num_warm_prefixes <= 6
    assert [network.kv_cache_bytes for network in stats.networks] == halfway
