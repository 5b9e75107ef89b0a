"""Drafting changes the speed and never the text: greedy or sampled, whoever drafts, whatever is in the batch."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from eft_engine import Engine, EngineConfig, LoadedPair, SamplingParams, SpeculationOptions
from tests.choice import thorough_but
from tests.toy import ARCHITECTURES, WITH_STATES, ToyTrio, make_model, make_tokenizer, make_trio

PROMPTS = ["A", "abcabcabcabc", "Once upon a time there was", "0123456789" * 3, "naïve façade – déjà vu"]
WEIGHTS = [0.0, 0.5, 1.0, 2.0, -0.5]
SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.8, "seed": 7},
    "filtered": {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 11},
    "penalised": {
        "temperature": 0.7,
        "seed": 13,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.3,
        "logit_bias": {65: 2.0},
    },
    "repeating": {"temperature": 0.5, "seed": 1, "logit_bias": {97: 30.0}},
}
PLAIN = SpeculationOptions(drafter="none")


def always(drafter: str, num_tokens: int = 5) -> SpeculationOptions:
    """Draft as much as possible, whether it pays or not, and after the shortest n-grams."""
    return SpeculationOptions(drafter=drafter, adaptive=False, max_draft_tokens=num_tokens, min_ngram_size=1)


def perturbed(model: PreTrainedModel, *, scale: float, seed: int) -> PreTrainedModel:
    """A copy with a little noise on every weight: a model that mostly agrees."""
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(scale * parameter.std() * torch.randn_like(parameter))
    return other


def agreeing_trio(architecture: str, *, scale: float = 0.02) -> ToyTrio:
    """A trio whose members mostly agree, so that drafts are accepted often and not always."""
    base = make_model(architecture, seed=1)
    return ToyTrio(base, perturbed(base, scale=scale, seed=2), perturbed(base, scale=scale, seed=3), make_tokenizer())


@pytest.mark.parametrize(
    "architecture",
    thorough_but([*ARCHITECTURES, *WITH_STATES], often=("llama", "gemma3", "qwen3_next")),
)
@pytest.mark.parametrize("drafter", ["tuned", "prompt_lookup", "auto"])
def test_text_is_that_of_plain_decoding(architecture: str, drafter: str) -> None:
    samplings = [SamplingParams(max_tokens=20, **own) for own in SAMPLINGS.values()]
    with agreeing_trio(architecture).engine() as engine:
        plain = engine.generate(PROMPTS, sampling=samplings, reward_weights=WEIGHTS, speculation=PLAIN)
        drafted = engine.generate(PROMPTS, sampling=samplings, reward_weights=WEIGHTS, speculation=always(drafter))
    assert [out.token_ids for out in drafted] == [out.token_ids for out in plain]
    assert [out.text for out in drafted] == [out.text for out in plain]
    assert sum(out.metrics.num_accepted for out in drafted) > 0
    assert all(out.metrics.num_drafted == 0 for out in plain)


@pytest.mark.parametrize("num_tokens", [1, 2, 7])
@pytest.mark.parametrize("architecture", ["llama", "qwen3_next"])
def test_rows_accept_their_own_counts(architecture: str, num_tokens: int) -> None:
    """A batch of eight."""
    sampling = SamplingParams(max_tokens=24, temperature=0.9, seed=5, ignore_eos=True)
    prompts, weights = [*PROMPTS, *PROMPTS[:3]], [*WEIGHTS, *WEIGHTS[1:4]]
    with agreeing_trio(architecture).engine() as engine:
        plain = engine.generate(prompts, sampling=sampling, reward_weights=weights, speculation=PLAIN)
        drafted = engine.generate(
            prompts, sampling=sampling, reward_weights=weights, speculation=always("tuned", num_tokens)
        )
    assert [out.token_ids for out in drafted] == [out.token_ids for out in plain]
    assert len({out.metrics.num_accepted for out in drafted}) > 1


def test_with_certain_acceptance_every_draft_and_the_bonus_token_count() -> None:
    # base and reference are equal weights in two objects, so the composition is the tuned model, and the tuned model drafts.
    base, tuned = make_model("llama", seed=1), make_model("llama", seed=2)
    sampling = SamplingParams(max_tokens=25, temperature=1.0, seed=3, ignore_eos=True)
    trio = ToyTrio(base, tuned, copy.deepcopy(base), make_tokenizer())
    with trio.engine() as engine:
        plain = engine.generate("The sky", sampling=sampling, reward_weights=1.0, speculation=PLAIN)
        drafted = engine.generate("The sky", sampling=sampling, reward_weights=1.0, speculation=always("tuned", 4))
    assert drafted.token_ids == plain.token_ids
    assert drafted.metrics.acceptance_rate == 1.0
    assert drafted.metrics.num_steps == 5
    assert drafted.metrics.mean_acceptance_length == 5.0
    # the tuned model ran once per token and no more: four drafts and the bonus position in each of the five steps
    assert drafted.metrics.num_forwards == {"base": 5, "chat.tuned": 25, "chat.reference": 5}


def test_several_pairs_draft_from_the_small_models() -> None:
    base = make_model("llama", seed=1)
    models = [perturbed(base, scale=0.02, seed=seed) for seed in range(2, 6)]
    pairs = {"helpful": LoadedPair(models[0], models[1]), "harmless": LoadedPair(models[2], models[3])}
    sampling = SamplingParams(max_tokens=20, temperature=0.8, seed=3, ignore_eos=True)
    weights = {"helpful": 0.7, "harmless": 0.4}
    with Engine.from_models(base, tokenizer=make_tokenizer(), pairs=pairs) as engine:
        plain = engine.generate(PROMPTS, sampling=sampling, reward_weights=weights, speculation=PLAIN)
        drafted = engine.generate(PROMPTS, sampling=sampling, reward_weights=weights, speculation=always("tuned", 3))
    assert [out.token_ids for out in drafted] == [out.token_ids for out in plain]
    assert sum(out.metrics.num_accepted for out in drafted) > 0


def test_nobody_drafts_when_the_tuned_model_is_not_run() -> None:
    sampling = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    with make_trio("llama").engine() as engine:
        out = engine.generate("abc", sampling=sampling, reward_weights=0.0, speculation=always("tuned"))
    assert out.metrics.num_drafted == 0
    # Where rounding depends on what is read together, the prompt's last token is read alone.
    alone = int(not engine._trio.networks[0].is_invariant)
    assert out.metrics.num_forwards == {"base": 8 + alone, "chat.tuned": 0, "chat.reference": 0}


@pytest.mark.parametrize("drafter", ["tuned", "prompt_lookup"])
def test_stops_inside_a_draft_end_the_text(drafter: str) -> None:
    with agreeing_trio("llama", scale=0.0).engine() as engine:
        greedy = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
        text = engine.generate("abab", sampling=greedy, speculation=PLAIN).text
        token_ids = engine.generate("abab", sampling=greedy, speculation=PLAIN).token_ids
        for sampling in (
            SamplingParams(max_tokens=20, temperature=0.0, stop=text[7:9]),
            SamplingParams(max_tokens=20, temperature=0.0, stop_token_ids=(token_ids[6],)),
            SamplingParams(max_tokens=6, temperature=0.0),
        ):
            plain = engine.generate("abab", sampling=sampling, speculation=PLAIN)
            drafted = engine.generate("abab", sampling=sampling, speculation=always(drafter, 8))
            assert (drafted.text, drafted.finish_reason, drafted.stop_reason) == (
                plain.text,
                plain.finish_reason,
                plain.stop_reason,
            )
            assert drafted.token_ids == plain.token_ids


def test_logprobs_are_those_of_plain_decoding() -> None:
    sampling = SamplingParams(max_tokens=12, temperature=0.8, seed=2, logprobs=3, ignore_eos=True)
    with agreeing_trio("qwen2").engine() as engine:
        plain = engine.generate("abcabc", sampling=sampling, reward_weights=0.6, speculation=PLAIN)
        drafted = engine.generate("abcabc", sampling=sampling, reward_weights=0.6, speculation=always("tuned"))
    for one, other in zip(plain.logprobs or (), drafted.logprobs or (), strict=True):
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert dict(one.members) == pytest.approx(dict(other.members), abs=1e-4)


def test_adaptive_drafting_gives_the_same_text() -> None:
    sampling = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
    config = EngineConfig(speculation=SpeculationOptions(min_ngram_size=1))
    trio = agreeing_trio("llama")
    with Engine.from_models(
        trio.base, tokenizer=trio.tokenizer, pairs={"chat": LoadedPair(trio.tuned, trio.reference)}, config=config
    ) as engine:
        plain = engine.generate(PROMPTS, sampling=sampling, reward_weights=WEIGHTS, speculation=PLAIN)
        adaptive = engine.generate(PROMPTS, sampling=sampling, reward_weights=WEIGHTS)
    assert [out.token_ids for out in adaptive] == [out.token_ids for out in plain]


@pytest.mark.parametrize("name", list(SAMPLINGS))
def test_first_drafted_token_has_the_composed_distribution(name: str) -> None:
    """Each seed gives the token that plain decoding gives for it, for many seeds: the same sample, not only the same law."""
    seeds = range(40)
    base = SAMPLINGS[name] | {"max_tokens": 3, "ignore_eos": True}
    samplings = [SamplingParams(**(base | {"seed": seed})) for seed in seeds]
    prompts = ["The sky"] * len(samplings)
    with agreeing_trio("llama", scale=0.1).engine() as engine:
        plain = engine.generate(prompts, sampling=samplings, speculation=PLAIN)
        drafted = engine.generate(prompts, sampling=samplings, speculation=always("tuned", 2))
    assert [out.token_ids for out in drafted] == [out.token_ids for out in plain]
