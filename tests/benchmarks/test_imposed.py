"""Imposed acceptance: the text stays what it is, the drafts are right as often as asked."""

from __future__ import annotations

import pytest

from benchmarks.imposed import impose
from eft_engine import SamplingParams, SpeculationOptions
from tests.toy import make_trio, naive_greedy


@pytest.mark.parametrize(("acceptance", "accepted_all"), [(1.0, True), (0.0, False)])
def test_text_is_unchanged_and_acceptance_is_the_imposed_one(acceptance: float, accepted_all: bool) -> None:
    trio = make_trio("llama")
    prompts = ["The old mill", "A longer beginning of a text"]
    ids = [tuple(trio.tokenizer.encode(prompt)) for prompt in prompts]
    right = {own: naive_greedy(trio, own, weight=0.5, max_tokens=12, stop_at_end=False) for own in ids}
    speculation = SpeculationOptions(drafter="tuned", adaptive=False, max_draft_tokens=3)
    with trio.engine(speculation=speculation) as engine:
        impose(engine, right, acceptance)
        sampling = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        outputs = engine.generate(prompts, sampling=sampling, reward_weights=0.5)
    assert [list(output.token_ids) for output in outputs] == list(right.values())
    for output in outputs:
        assert output.metrics.num_drafted > 0
        assert output.metrics.num_accepted == (output.metrics.num_drafted if accepted_all else 0)
