"""A Llama trio with two pairs: exact answers of a mixed batch, prefix-cache hits, log-probabilities, refused requests."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from eft_engine import Engine, EngineConfig, SamplingParams, TunedPair
from tests.vllm.asking import answers, counters, token_ids
from tests.vllm.trios import Asked, Judge, TrioFolders, mixed_requests, save_trio


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> TrioFolders:
    return save_trio("llama", tmp_path_factory.mktemp("llama"), pairs=("chat", "json"))


@pytest.fixture(scope="module")
def judge(trio: TrioFolders) -> Judge:
    return Judge(trio)


@pytest.fixture(scope="module")
def requests() -> list[Asked]:
    return mixed_requests(20, num_pairs=2)


@pytest.fixture(scope="module")
def expected(judge: Judge, requests: list[Asked]) -> list[list[int]]:
    return [judge.greedy(own) for own in requests]


@pytest.fixture(scope="module")
def llm(start: Callable[..., Any], trio: TrioFolders) -> Any:
    return start(trio.base, trio.overrides, disable_log_stats=False)


def test_batch_of_mixed_weights_is_exact(llm: Any, requests: list[Asked], expected: list[list[int]]) -> None:
    assert len({tuple(own.weights) for own in requests}) > 10
    assert (
        max(len(own.prompt_ids) for own in requests)
        > llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    )
    assert token_ids(llm, requests) == expected


def test_second_pass_hits_the_prefix_cache_and_is_exact(
    llm: Any, requests: list[Asked], expected: list[list[int]]
) -> None:
    before = counters(llm).get("vllm:prefix_cache_hits", 0)
    assert token_ids(llm, requests) == expected
    assert counters(llm)["vllm:prefix_cache_hits"] > before


def test_one_prompt_at_many_weights_shares_its_prefix_and_not_its_answers(llm: Any, judge: Judge) -> None:
    prompt = list(range(40, 200))
    asked = [Asked(prompt, [first, second], 12) for first in (0.0, 1.0, 2.0) for second in (-0.7, 1.0)]
    found = token_ids(llm, asked)
    assert found == [judge.greedy(own) for own in asked]
    assert len({tuple(ids) for ids in found}) > 1


def test_logprobs_are_those_of_the_composition(llm: Any, judge: Judge, requests: list[Asked]) -> None:
    for own, output in zip(requests[:8], answers(llm, requests[:8], logprobs=3, prompt_logprobs=0), strict=True):
        answer = output.outputs[0]
        whole = [*own.prompt_ids, *answer.token_ids]
        composed = judge.logprobs(whole, own.weights)
        for index, entries in enumerate(answer.logprobs, start=len(own.prompt_ids)):
            for token, entry in entries.items():
                assert entry.logprob == pytest.approx(float(composed[index - 1, token]), abs=1e-4)
        of_prompt = [
            entry[token].logprob for token, entry in zip(own.prompt_ids[1:], output.prompt_logprobs[1:], strict=True)
        ]
        wanted = composed[torch.arange(len(of_prompt)), own.prompt_ids[1:]]
        assert of_prompt == pytest.approx(wanted.tolist(), abs=1e-3)


def test_request_without_weights_has_the_pairs_own(llm: Any, judge: Judge) -> None:
    from vllm import SamplingParams as Sampling

    prompt = list(b"Who goes there?")
    (output,) = llm.generate([{"prompt_token_ids": prompt}], Sampling(temperature=0, max_tokens=12), use_tqdm=False)
    assert list(output.outputs[0].token_ids) == judge.greedy(Asked(prompt, [1.0, 1.0], 12))


@pytest.mark.parametrize(
    "extra",
    [
        {"eft_weights": [1.0]},
        {"eft_weights": [1.0, 1.0, 1.0]},
        {"eft_weights": []},
        {"eft_weights": [math.nan, 0.0]},
        {"eft_weights": math.inf},
        {"eft_weights": 1e9},
        {"eft_weights": True},
        {"eft_weights": [None, 1.0]},
        {"eft_weights": ["1", 1.0]},
        {"eft_weights": "polite=1"},
        {"eft_weights": "chat=high"},
        {"eft_weights": {"polite": 1.0}},
        {"eft_weigths": [1.0, 1.0]},
    ],
)
def test_wrong_weights_are_refused_and_the_engine_lives(llm: Any, judge: Judge, extra: dict[str, Any]) -> None:
    from vllm import SamplingParams as Sampling
    from vllm.exceptions import VLLMValidationError

    prompt = {"prompt_token_ids": list(b"Hello")}
    with pytest.raises(VLLMValidationError, match="pair|eft_weights"):
        llm.generate([prompt], Sampling(temperature=0, max_tokens=4, extra_args=extra), use_tqdm=False)
    good = Asked(list(b"Hello"), [1.37, -0.7], 6)
    assert token_ids(llm, [good]) == [judge.greedy(good)]


def test_prompt_that_is_too_long_is_refused_and_the_engine_lives(llm: Any, judge: Judge) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="maximum"):
        token_ids(llm, [Asked([65] * 600, [1.0, 1.0], 4)])
    good = Asked(list(b"Hello"), [0.5, 2.0], 6)
    assert token_ids(llm, [good]) == [judge.greedy(good)]


def test_engine_and_vllm_give_the_same_answer(llm: Any, trio: TrioFolders) -> None:
    from vllm import SamplingParams as Sampling

    pairs = {name: TunedPair(str(tuned), str(reference)) for name, (tuned, reference) in trio.pairs.items()}
    with Engine.load(str(trio.base), pairs=pairs, config=EngineConfig(dtype="float32", device="cpu")) as engine:
        for prompt in ("Once upon a time", "Grüße aus dem All"):
            for weights in ({"chat": 1.0, "json": 0.0}, {"chat": 0.5, "json": 1.37}, {"chat": -0.7, "json": 2.0}):
                ours = engine.generate(
                    prompt, sampling=SamplingParams(temperature=0, max_tokens=24), reward_weights=weights
                )
                sampling = Sampling(temperature=0, max_tokens=24, extra_args={"eft_weights": weights})
                (theirs,) = llm.generate([prompt], sampling, use_tqdm=False)
                assert tuple(theirs.outputs[0].token_ids) == ours.token_ids


def test_sampling_follows_the_composition(llm: Any, judge: Judge) -> None:
    """Frequencies of 4,000 draws lie within five standard errors of the composed probabilities (a false alarm: below 1e-4)."""
    from vllm import SamplingParams as Sampling

    prompt, weights, num_draws = list(b"The answer is "), [1.0, 0.5], 4000
    sampling = Sampling(temperature=1, max_tokens=1, n=num_draws // 8, seed=None, extra_args={"eft_weights": weights})
    outputs = llm.generate([{"prompt_token_ids": prompt}] * 8, sampling, use_tqdm=False)
    drawn = torch.tensor([answer.token_ids[0] for output in outputs for answer in output.outputs])
    probabilities = judge.logprobs(prompt, weights)[-1].exp()
    for token in probabilities.topk(4).indices.tolist():
        probability = float(probabilities[token])
        error = (probability * (1 - probability) / num_draws) ** 0.5
        assert float((drawn == token).float().mean()) == pytest.approx(probability, abs=5 * error + 1e-9)
