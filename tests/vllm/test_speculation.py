"""Drafts inside vLLM change the speed, never the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.vllm.asking import counters, token_ids
from tests.vllm.trios import Judge, TrioFolders, mixed_requests, save_trio


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> TrioFolders:
    return save_trio("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_drafts_do_not_change_the_answers(method: str, start: Callable[..., Any], trio: TrioFolders) -> None:
    from vllm.exceptions import VLLMValidationError

    # Small models with random weights agree with nobody; the base agrees with itself at weight 0, and sometimes elsewhere.
    how = {
        "ngram": {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3},
        "draft_model": {"method": "draft_model", "model": str(trio.base)},
    }[method]
    judge, requests = Judge(trio), mixed_requests(20, num_pairs=1)
    speculative = {**how, "num_speculative_tokens": 3}
    llm = start(trio.base, trio.overrides, speculative_config=speculative, disable_log_stats=False)
    assert token_ids(llm, requests) == [judge.greedy(own) for own in requests]
    accepted, drafted = (counters(llm)[f"vllm:spec_decode_num_{kind}_tokens"] for kind in ("accepted", "draft"))
    assert 0 < accepted < drafted
    with pytest.raises(VLLMValidationError, match="one number per pair"):
        llm.generate([{"prompt_token_ids": [1]}], _sampling([1.0, 2.0]), use_tqdm=False)


def test_tuned_model_drafts(start: Callable[..., Any], trio: TrioFolders) -> None:
    tuned, _ = trio.pairs["chat"]
    judge, requests = Judge(trio), mixed_requests(20, num_pairs=1, max_tokens=12)
    speculative = {"method": "draft_model", "model": str(tuned), "num_speculative_tokens": 2}
    llm = start(trio.base, trio.overrides, speculative_config=speculative)
    assert token_ids(llm, requests) == [judge.greedy(own) for own in requests]


def _sampling(weights: list[float]) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=2, extra_args={"eft_weights": weights})
