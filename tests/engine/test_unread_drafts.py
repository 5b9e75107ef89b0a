"""Drafts that stay on the device until the step's one read: what an accelerator does, run here on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from eft_engine import (
    Engine,
    FirstTokens,
    FromMarker,
    Gate,
    JsonSchema,
    LinearRamp,
    SamplingParams,
    SpeculationOptions,
)
from eft_engine.engine.sequence import GenerationSequence
from tests.toy import make_trio

PLAIN = SpeculationOptions(drafter="none")
DRAFTS = SpeculationOptions(drafter="tuned", adaptive=False, max_draft_tokens=4)
PROMPTS = ["abc", "The sky is", "ab" * 20]


@pytest.fixture(scope="module", params=["llama", pytest.param("qwen3_next", marks=pytest.mark.only_torch)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Its drafter leaves drafts unread wherever it may."""
    with make_trio(request.param).engine() as engine:
        engine._worker._stepper._drafter.reads_drafts = False
        yield engine


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Every draft that was left unread."""
    kept: list[torch.Tensor] = []
    original = GenerationSequence.add_unread_draft

    def add(self: GenerationSequence, token_id: torch.Tensor) -> None:
        kept.append(token_id)
        original(self, token_id)

    monkeypatch.setattr(GenerationSequence, "add_unread_draft", add)
    return kept


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_text_is_that_of_plain_decoding(engine: Engine, unread: list[torch.Tensor], temperature: float) -> None:
    sampling = [SamplingParams(temperature=temperature, seed=seed, max_tokens=20) for seed in range(3)]
    weights = [0.5, 1.0, 2.0]
    plain = engine.generate(PROMPTS, sampling=sampling, reward_weights=weights, speculation=PLAIN)
    assert not unread
    drafted = engine.generate(PROMPTS, sampling=sampling, reward_weights=weights, speculation=DRAFTS)
    assert unread
    assert [out.token_ids for out in drafted] == [out.token_ids for out in plain]
    assert sum(out.metrics.num_drafted for out in drafted) == len(unread)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"grammar": JsonSchema(json_schema={"type": "array", "items": {"enum": ["a", "bc"]}})},
    ],
    ids=["penalty", "grammar"],
)
def test_drafts_that_the_host_computes_with_are_read(
    engine: Engine, unread: list[torch.Tensor], options: dict[str, object]
) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=20, **options)
    plain = engine.generate("abc", sampling=sampling, speculation=PLAIN)
    drafted = engine.generate("abc", sampling=sampling, speculation=DRAFTS)
    assert drafted.token_ids == plain.token_ids
    assert drafted.metrics.num_drafted > 0
    assert not unread


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_weights_that_follow_position_and_measures_need_no_reading(
    engine: Engine, unread: list[torch.Tensor], temperature: float
) -> None:
    sampling = [SamplingParams(temperature=temperature, seed=seed, max_tokens=20) for seed in range(3)]
    weights = [LinearRamp(num_tokens=12), FirstTokens(num_tokens=7), Gate(by="base_entropy", above=3.0, otherwise=0.5)]
    plain = engine.generate(PROMPTS, sampling=sampling, reward_weights=weights, speculation=PLAIN)
    drafted = engine.generate(PROMPTS, sampling=sampling, reward_weights=weights, speculation=DRAFTS)
    assert unread
    assert [out.token_ids for out in drafted] == [out.token_ids for out in plain]
    assert [out.intervention_rate for out in drafted] == [out.intervention_rate for out in plain]


def test_weights_that_follow_the_text_read_the_drafts(engine: Engine, unread: list[torch.Tensor]) -> None:
    weight = FromMarker(marker="e", before=0.5)
    sampling = SamplingParams(temperature=0.0, max_tokens=20, logit_bias={ord("e") - 33: 4.0})
    plain = engine.generate(PROMPTS, sampling=sampling, reward_weights=weight, speculation=PLAIN)
    drafted = engine.generate(PROMPTS, sampling=sampling, reward_weights=weight, speculation=DRAFTS)
    assert not unread
    assert sum(out.metrics.num_drafted for out in drafted) > 0
    assert [out.token_ids for out in drafted] == [out.token_ids for out in plain]
