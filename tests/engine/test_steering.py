"""Prompt pairs, schedules, gates and masks: token for token what the slow loop writes, in one batch with ordinary requests."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from eft_engine import (
    Between,
    CompositionOptions,
    Engine,
    FirstTokens,
    FromMarker,
    Gate,
    InJsonStrings,
    LinearRamp,
    PromptPair,
    Proportional,
    Regex,
    SamplingParams,
    SpeculationOptions,
    TokenIds,
    Without,
)
from eft_engine.config import RewardWeights
from eft_engine.errors import InvalidOptionError
from eft_engine.text.places import InsideJsonString
from tests.choice import thorough_but
from tests.engine.slow_loop import Draw, Judge, Scores, Written, slow_loop
from tests.toy import ToyTrio, architectures, make_trio

PROMPT = "Once upon a time"
OTHER = "Nobody ever said that"
MAX_TOKENS = 16
QUOTES = {ord(mark) - 33: bias for mark, bias in (('"', 7.0), ("{", 6.0), (":", 6.0), ("}", 5.0))}
"""Printable bytes are the first tokens of the toy tokenizer; with these texts have braces and quotes."""


def pair_of(written: Written, prompt: str | None = None) -> Tensor:
    """Tuned - reference"""
    return written.of("tuned", prompt) - written.of("reference", prompt)


def weighted(weight: Callable[[Written], float]) -> Scores:
    """The formula with a weight of its own for every token."""
    return lambda written: written.of("base") + weight(written) * pair_of(written)


def entropy(logprobs: Tensor) -> float:
    return -sum(math.exp(value) * value for value in logprobs.tolist())


def divergence(first: Tensor, second: Tensor) -> float:
    return sum(math.exp(a) * (a - b) for a, b in zip(first.tolist(), second.tolist(), strict=True))


def kl(written: Written) -> float:
    return divergence(written.of("tuned"), written.of("reference"))


def total_variation(written: Written) -> float:
    sides = written.of("tuned").exp().tolist(), written.of("reference").exp().tolist()
    return sum(abs(a - b) for a, b in zip(*sides, strict=True)) / 2


def jensen_shannon(written: Written) -> float:
    sides = [written.of("tuned"), written.of("reference")]
    mean = torch.stack([side.exp() for side in sides]).mean(dim=0).log()
    return sum(divergence(side, mean) for side in sides) / (2 * math.log(2))


def between(written: Written) -> float:
    """From 'e' to 'a', as one reads it."""
    inside = False
    for byte in written.text:
        if byte == ord("a" if inside else "e"):
            inside = not inside
    return 1.0 if inside else 0.25


def plausible(scores: Tensor, base: Tensor, share: float) -> Tensor:
    return scores.masked_fill(base.exp() < share * base.exp().max(), -torch.inf)


def bounded(
    written: Written, weight: float, share: float, *, model: str = "tuned", prompt: str | None = None
) -> Tensor:
    """What a pair adds, token by token; of a prompt pair one model's own prompt against another one."""
    tuned = written.of(model)
    reference = written.of("reference") if prompt is None else written.of(model, prompt)
    best = max(tuned.exp().tolist())
    terms = [
        (min(weight, 1.0) if math.exp(own) < share * best and own > other else weight) * (own - other)
        for own, other in zip(tuned.tolist(), reference.tolist(), strict=True)
    ]
    return torch.tensor(terms)


@dataclass(frozen=True)
class Case:
    """What is asked of an engine, and how the slow loop reads it."""

    scores: Scores
    weights: RewardWeights = None
    composition: CompositionOptions = field(default_factory=CompositionOptions)
    bias: dict[int, float] = field(default_factory=dict)


def with_prompts(**pairs: Any) -> CompositionOptions:
    return CompositionOptions(prompt_pairs={name: PromptPair(**own) for name, own in pairs.items()})


CASES = {
    "ordinary": Case(weighted(lambda _: 1.0)),
    "half": Case(weighted(lambda _: 0.5), weights=0.5),
    "negative prompt": Case(
        lambda own: own.of("base") + 0.7 * (own.of("base") - own.of("base", OTHER)),
        weights={"chat": 0.0, "style": 0.7},
        composition=with_prompts(style={"negative": OTHER}),
    ),
    "stronger prompt of a small model, beside the pair": Case(
        lambda own: own.of("base") + pair_of(own) + 0.5 * (own.of("tuned", OTHER) - own.of("tuned")),
        composition=with_prompts(style={"positive": OTHER, "model": "chat", "weight": 0.5}),
    ),
    "two prompt pairs and a weight that follows the token": Case(
        lambda own: (
            own.of("base")
            + 0.5 * pair_of(own)
            + (1.0 if own.position < 5 else 0.0) * (own.of("base", OTHER) - own.of("base", "On a"))
            - 0.25 * (own.of("reference") - own.of("reference", OTHER))
        ),
        weights={"chat": 0.5, "there": FirstTokens(num_tokens=5)},
        composition=with_prompts(
            there={"positive": OTHER, "negative": "On a"},
            back={"negative": OTHER, "model": "chat.reference", "weight": -0.25},
        ),
    ),
    "first tokens": Case(weighted(lambda own: 1.5 if own.position < 6 else 0.0), FirstTokens(num_tokens=6, weight=1.5)),
    "ramp": Case(weighted(lambda own: max(0.0, 2.0 - own.position / 4)), LinearRamp(start=2.0, end=0.0, num_tokens=8)),
    "from a marker on": Case(
        weighted(lambda own: 1.0 if b"e" in own.text else 0.0), FromMarker(marker="e"), bias={ord("e") - 33: 3.0}
    ),
    "between markers": Case(
        weighted(between),
        Between(opening="e", closing="a", outside=0.25),
        bias={ord("e") - 33: 4.0, ord("a") - 33: 4.0},
    ),
    "inside strings of JSON": Case(
        weighted(lambda own: 2.0 if InsideJsonString().after(own.text).is_inside else 0.0),
        InJsonStrings(weight=2.0),
        bias=QUOTES,
    ),
    "where the base is unsure": Case(
        weighted(lambda own: 1.0 if entropy(own.of("base")) > 3.2 else 0.0), Gate(by="base_entropy", above=3.2)
    ),
    "where the base is not sure": Case(
        weighted(lambda own: 1.0 if own.of("base").max().exp() < 0.25 else -0.5),
        Gate(by="base_confidence", below=0.25, otherwise=-0.5),
    ),
    "where the pair has much to say": Case(
        weighted(lambda own: 1.0 if kl(own) > 2.75 else 0.0), Gate(by="kl", above=2.75)
    ),
    "in a band": Case(
        weighted(lambda own: 1.0 if 0.74 < total_variation(own) < 0.79 else 0.25),
        Gate(by="total_variation", above=0.74, below=0.79, otherwise=0.25),
    ),
    "as far as the pair differs": Case(
        weighted(lambda own: min(1.5 * jensen_shannon(own), 1.0)), Proportional(factor=1.5, most=1.0)
    ),
    "a gate for the first tokens": Case(
        weighted(lambda own: (1.0 if kl(own) > 2.75 else 0.0) if own.position < 8 else 0.5),
        FirstTokens(num_tokens=8, weight=Gate(by="kl", above=2.75), then=0.5),
    ),
    "plausible tokens alone": Case(
        lambda own: plausible(own.of("base") + 2.0 * pair_of(own), own.of("base"), 0.1),
        weights=2.0,
        composition=CompositionOptions(min_plausibility=0.1),
    ),
    "no implausible token lifted with more than weight 1": Case(
        lambda own: own.of("base") + bounded(own, 3.0, 0.2), 3.0, CompositionOptions(tuned_plausibility=0.2)
    ),
    "the same below 0 and at 1": Case(
        lambda own: own.of("base") + (-3.0 if own.position < 4 else 1.0) * pair_of(own),
        FirstTokens(num_tokens=4, weight=-3.0, then=1.0),
        CompositionOptions(tuned_plausibility=0.2),
    ),
    "the same where weights follow the token": Case(
        lambda own: own.of("base") + bounded(own, max(0.5, 3.0 - own.position / 4), 0.3),
        LinearRamp(start=3.0, end=0.5, num_tokens=10),
        CompositionOptions(tuned_plausibility=0.3),
    ),
    "the same where weights are measured": Case(
        lambda own: own.of("base") + bounded(own, 2.5 if kl(own) > 2.75 else 0.5, 0.3),
        Gate(by="kl", above=2.75, weight=2.5, otherwise=0.5),
        CompositionOptions(tuned_plausibility=0.3),
    ),
    "the same in proportion, of each pair for itself": Case(
        lambda own: (
            own.of("base")
            + bounded(own, min(3.0 * jensen_shannon(own), 2.5), 0.1)
            + bounded(own, 2.0, 0.1, model="base", prompt=OTHER)
        ),
        {"chat": Proportional(factor=3.0, most=2.5)},
        CompositionOptions(tuned_plausibility=0.1, prompt_pairs={"style": PromptPair(negative=OTHER, weight=2.0)}),
    ),
    "amplified, for the first tokens": Case(
        lambda own: (
            own.of("base") + pair_of(own) + 0.5 * (own.of("base") - own.of("reference"))
            if own.position < 6
            else own.of("base")
        ),
        FirstTokens(num_tokens=6),
        CompositionOptions(amplification=1.5),
    ),
}
DRAFTED = SpeculationOptions(adaptive=False, max_draft_tokens=4)
OF_EACH_KIND = ("llama", "gemma3", "lfm2", "falcon_h1")
"""Attention, windows of it, short convolutions, a state: how networks read is judged by `test_exactness` for all of them."""


@pytest.mark.parametrize("architecture", thorough_but(OF_EACH_KIND, often={"llama", "falcon_h1"}))
def test_every_kind_equals_the_slow_loop_in_one_batch(architecture: str) -> None:
    trio = make_trio(architecture)
    judge = Judge(trio)
    for temperature, speculation in ((0.0, SpeculationOptions(drafter="none")), (0.9, DRAFTED)):
        with trio.engine(prefill_chunk_len=16, max_num_seqs=len(CASES)) as engine:
            outputs = engine.generate(
                [PROMPT] * len(CASES),
                sampling=[
                    SamplingParams(temperature=temperature, seed=seed, max_tokens=MAX_TOKENS, logit_bias=case.bias)
                    for seed, case in enumerate(CASES.values())
                ],
                reward_weights=[case.weights for case in CASES.values()],
                composition=[case.composition for case in CASES.values()],
                speculation=speculation,
            )
        for seed, ((name, case), output) in enumerate(zip(CASES.items(), outputs, strict=True)):
            draw = Draw(temperature, seed, MAX_TOKENS, bias=case.bias)
            assert list(output.token_ids) == slow_loop(judge, PROMPT, case.scores, draw), name


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(make_trio(architectures()[0]))


@pytest.fixture(scope="module")
def trio() -> ToyTrio:
    """As the judge's, which computes while the engine holds this one."""
    return make_trio(architectures()[0])


@pytest.fixture(scope="module")
def engine(trio: ToyTrio) -> Iterator[Engine]:
    with trio.engine() as made:
        yield made


@pytest.mark.parametrize("name", CASES)
def test_a_score_is_the_composed_distribution_and_tells_the_weights(name: str, judge: Judge, engine: Engine) -> None:
    case = CASES[name]
    completion = slow_loop(judge, PROMPT, case.scores, Draw(max_tokens=12, bias=case.bias))
    scored = engine.score(PROMPT, TokenIds(ids=completion), reward_weights=case.weights, composition=case.composition)
    alone = engine.generate(
        PROMPT,
        sampling=SamplingParams(temperature=0.0, max_tokens=12, logit_bias=case.bias),
        reward_weights=case.weights,
        composition=case.composition,
    )
    assert list(alone.token_ids) == completion
    steered = [any(token.weights.values()) for token in scored.tokens]
    assert alone.intervention_rate == pytest.approx(sum(steered) / len(steered))
    assert scored.intervention_rate == alone.intervention_rate
    for place, token in enumerate(scored.tokens):
        written = Written(judge, PROMPT, tuple(completion[:place]))
        expected = case.scores(written).log_softmax(dim=-1)[completion[place]]
        assert token.composed == pytest.approx(float(expected), abs=2e-3)
        assert token.base == pytest.approx(float(written.of("base")[completion[place]]), abs=1e-3)
        assert token.is_base_greedy == (int(written.of("base").argmax()) == completion[place])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if isinstance(case.weights, Gate)])
def test_gates_are_open_at_some_tokens_and_closed_at_others(name: str, engine: Engine) -> None:
    """Of these texts, or the cases would judge constant weights."""
    weights = CASES[name].weights
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    written = TokenIds(ids=engine.generate(PROMPT, sampling=sampling, reward_weights=weights).token_ids)
    tokens = engine.score(PROMPT, written, reward_weights=weights).tokens
    assert len({token.weights["chat"] for token in tokens}) == 2


def test_what_does_not_matter_now_is_not_run(engine: Engine) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    plain = SpeculationOptions(drafter="none")
    some = engine.generate(PROMPT, sampling=sampling, speculation=plain, reward_weights=FirstTokens(num_tokens=4))
    assert some.metrics.num_forwards["base"] >= 20
    # Where rounding depends on what is read together, the prompt's last token is read alone.
    alone = int(not engine._trio.networks[0].is_invariant)
    assert some.metrics.num_forwards["chat.tuned"] == some.metrics.num_forwards["chat.reference"] == 4 + alone
    assert some.intervention_rate == 4 / 20
    late = engine.generate(
        PROMPT, sampling=sampling, speculation=plain, reward_weights=FirstTokens(num_tokens=16, weight=0.0, then=1.0)
    )
    assert late.metrics.num_forwards["chat.tuned"] <= 5
    never = engine.generate(
        PROMPT, sampling=sampling, speculation=plain, reward_weights=FirstTokens(num_tokens=4, weight=0.0)
    )
    assert never.metrics.num_forwards["chat.tuned"] == never.intervention_rate == 0


def test_a_pair_that_matters_late_reads_what_it_missed_in_chunks(judge: Judge) -> None:
    trio = make_trio(architectures()[0])
    long = "0123456789" * 12
    weight = FirstTokens(num_tokens=70, weight=0.0, then=1.0)
    sampling = SamplingParams(temperature=0.0, max_tokens=80, ignore_eos=True)
    with trio.engine(prefill_chunk_len=16) as own:
        found = [
            own.generate(long, sampling=sampling, speculation=speculation, reward_weights=weight)
            for speculation in (SpeculationOptions(drafter="none"), DRAFTED, SpeculationOptions())
        ]
    assert found[0].metrics.num_forwards["chat.tuned"] > 10  # 190 tokens in chunks, then one by one
    assert len({output.token_ids for output in found}) == 1
    draw = Draw(max_tokens=80)
    with trio.engine() as own:
        base = own.generate(long, sampling=sampling.model_copy(update={"max_tokens": 70}), reward_weights=0.0)
    behind = slow_loop(judge, long, weighted(lambda _: 1.0), draw, written=base.token_ids)
    assert list(found[0].token_ids)[: len(behind)] == behind


def test_sides_by_role_and_without_texts(judge: Judge, engine: Engine) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Facts: blue. What colour?"}]

    def rendered(system: str | None, user: str) -> str:
        head = "" if system is None else f"<|system|>{system}<|end|>"
        return f"{head}<|user|>{user}<|end|><|assistant|>"

    asked = rendered("Be kind.", "Facts: blue. What colour?")
    cases = {
        rendered("Be rude.", "Facts: blue. What colour?"): PromptPair(negative={"system": "Be rude."}),
        rendered(None, "Facts: blue. What colour?"): PromptPair(negative={"system": None}),
        rendered("Be kind.", " What colour?"): PromptPair(negative=Without(texts=["Facts: blue."])),
        rendered(None, "Hi"): PromptPair(negative=[{"role": "user", "content": "Hi"}]),
    }
    for negative, pair in cases.items():
        found = engine.generate(
            messages,
            sampling=SamplingParams(temperature=0.0, max_tokens=8),
            reward_weights=0.0,
            composition=CompositionOptions(prompt_pairs={"own": pair}),
        )

        def scores(own: Written, negative: str = negative) -> Tensor:
            return 2.0 * own.of("base") - own.of("base", negative)

        assert list(found.token_ids) == slow_loop(judge, asked, scores, Draw(max_tokens=8))
        assert found.reward_weights == {"chat": 0.0, "own": 1.0}


@pytest.mark.parametrize(
    ("pairs", "weights", "told"),
    [
        ({"chat": {"negative": OTHER}}, None, "called like a pair"),
        ({"own": {"negative": OTHER, "model": "large"}}, None, "there is no model 'large'"),
        ({"own": {"negative": {"system": "x"}}}, None, "raw prompt without roles"),
        ({"own": {"negative": {"texts": ["not there"]}}}, None, "does not hold 1 of 1"),
        ({"own": {"negative": ""}}, None, "empty"),
        ({}, {"own": 1.0}, "there is no pair 'own'"),
    ],
)
def test_what_is_wrong_is_told_and_the_engine_lives_on(
    engine: Engine, pairs: dict[str, Any], weights: RewardWeights, told: str
) -> None:
    with pytest.raises(Exception, match=told) as caught:
        engine.generate(PROMPT, composition=with_prompts(**pairs), reward_weights=weights)
    assert isinstance(caught.value, InvalidOptionError) or "Error" in type(caught.value).__name__
    assert engine.generate(PROMPT, sampling=SamplingParams(max_tokens=2)).text is not None


def test_under_a_grammar_something_plausible_is_always_left(engine: Engine) -> None:
    from eft_engine import JsonSchema

    found = engine.generate(
        PROMPT,
        sampling=SamplingParams(
            temperature=0.0,
            max_tokens=60,
            grammar=JsonSchema(
                json_schema={
                    "type": "object",
                    "properties": {"a": {"enum": ["x", "y"]}},
                    "required": ["a"],
                    "additionalProperties": False,
                }
            ),
        ),
        composition=CompositionOptions(min_plausibility=1.0),
    )
    assert json.loads(found.text)["a"] in "xy"


@pytest.mark.only_torch  # llama.cpp's last bits depend on where in its cache a text lies
@pytest.mark.parametrize(
    "weights",
    [1.0, 0.3, -2.0, FirstTokens(num_tokens=4, then=0.5), Gate(by="kl", above=2.75)],
    ids=["1", "0.3", "-2", "first tokens", "gate"],
)
def test_up_to_weight_one_a_bound_changes_not_one_bit_and_runs_nothing_more(weights: Any, engine: Engine) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=5)
    options = [CompositionOptions(), CompositionOptions(), CompositionOptions(tuned_plausibility=1.0)]
    _, plain, bounded = (  # the first one leaves the prompt read for both
        engine.generate(
            PROMPT,
            sampling=sampling,
            reward_weights=weights,
            composition=composition,
            speculation=SpeculationOptions(drafter="none"),
        )
        for composition in options
    )
    assert bounded.logprobs == plain.logprobs
    assert bounded.metrics.num_forwards == plain.metrics.num_forwards


def test_a_bound_holds_under_a_grammar_with_any_drafts(engine: Engine) -> None:
    grammar = Regex(pattern="[a-zA-Z ]{20,24}")
    found: dict[float, set[tuple[int, ...]]] = {}
    for share in (0.0, 0.5):
        for speculation in (SpeculationOptions(drafter="none"), DRAFTED, SpeculationOptions()):
            output = engine.generate(
                PROMPT,
                sampling=SamplingParams(seed=3, max_tokens=24, grammar=grammar),
                reward_weights=3.0,
                composition=CompositionOptions(tuned_plausibility=share),
                speculation=speculation,
            )
            found.setdefault(share, set()).add(output.token_ids)
    assert [len(texts) for texts in found.values()] == [1, 1]
    assert found[0.0] != found[0.5]


def test_equal_prompts_are_one_stream(engine: Engine) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    twice = engine.generate(
        PROMPT, sampling=sampling, reward_weights=0.0, composition=with_prompts(own={"negative": PROMPT})
    )
    assert twice.token_ids == engine.generate(PROMPT, sampling=sampling, reward_weights=0.0).token_ids
    assert [name for name, number in twice.metrics.num_forwards.items() if number] == ["base"]


def test_every_measure_is_judged() -> None:
    judged = {
        own.by if isinstance(own, Gate) else own.to
        for case in CASES.values()
        if isinstance(own := case.weights, Gate | Proportional)
    }
    assert judged == {"base_entropy", "base_confidence", "kl", "total_variation", "jensen_shannon"}


def test_an_infinite_divergence_opens_a_gate() -> None:
    """The reference rules out what the tuned model does not."""
    from eft_engine.engine.composing import _bounds, _weights_of

    weights = [Gate(by="kl", above=1.0), Gate(by="kl", below=1.0), Proportional(to="kl", factor=-2.0, most=0.5)]
    found = _weights_of(torch.full((3,), math.inf), torch.tensor([_bounds(weight) for weight in weights]))
    assert found.tolist() == [1.0, 0.0, -0.5]
