"""The engine's greedy text is token for token that of the formula over three transformers models."""

from __future__ import annotations

import pytest

from eft_engine import SamplingParams
from tests.choice import thorough_but
from tests.toy import architectures, make_trio, naive_greedy

PROMPTS = ["A", "The sky is", "Once upon a time there was", "0123456789" * 3, "naïve façade – déjà vu"]
WEIGHTS = [0.0, 0.5, 1.0, 2.0]
MAX_TOKENS = 24


OFTEN = {"llama", "gemma3", "qwen3_next"}


@pytest.mark.parametrize("architecture", thorough_but(architectures(), often=OFTEN.intersection(architectures())))
def test_generate_equals_the_ten_line_loop(architecture: str) -> None:
    trio = make_trio(architecture)
    prompt_ids = [trio.tokenizer.encode(prompt) for prompt in PROMPTS]
    expected = {
        (index, weight): naive_greedy(trio, ids, weight=weight, max_tokens=MAX_TOKENS)
        for index, ids in enumerate(prompt_ids)
        for weight in WEIGHTS
    }
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    with trio.engine(prefill_chunk_len=16) as engine:
        for weight in WEIGHTS:
            single = engine.generate(PROMPTS[2], sampling=greedy, reward_weights=weight)
            assert list(single.token_ids) == expected[2, weight]
            same = engine.generate(PROMPTS, sampling=greedy, reward_weights=weight)
            assert [list(out.token_ids) for out in same] == [expected[i, weight] for i in range(5)]
        mixed_weights = [*WEIGHTS, 0.5]
        mixed = engine.generate(PROMPTS, sampling=greedy, reward_weights=mixed_weights)
        assert [list(out.token_ids) for out in mixed] == [expected[i, w] for i, w in enumerate(mixed_weights)]
