"""Pairs without a reference: loaded as any pair, composed as the slow loop composes them, reported and scored."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from eft_engine import (
    CompositionOptions,
    Engine,
    EngineConfig,
    FirstTokens,
    Gate,
    LoadedPair,
    MemberConfig,
    PromptPair,
    SamplingParams,
    SpeculationOptions,
    Term,
    TokenIds,
    TunedPair,
    context_len_of,
    inspect_trio,
)
from eft_engine.errors import UnsupportedAdapterError, VocabularyMismatchError
from tests.engine.slow_loop import Draw, Judge, Scores, Written, slow_loop
from tests.engine.test_kept_tokens import ADDED, Member, chatml_model, chatml_tokenizer
from tests.toy import VOCAB_SIZE, ToyTrio, make_model, make_tokenizer, make_trio, save_adapter

pytestmark = pytest.mark.only_torch

PROMPT = "Once upon a time"
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
DRAFTED = SpeculationOptions(drafter="tuned", adaptive=False, max_draft_tokens=4)
PLAIN = SpeculationOptions(drafter="none")


@pytest.fixture(scope="module")
def trio() -> ToyTrio:
    """Those of the engine once more: what an engine holds cannot be called directly."""
    return make_trio("llama")


@pytest.fixture(scope="module")
def judge(trio: ToyTrio) -> Judge:
    return Judge(trio)


@pytest.fixture(scope="module")
def engine(toy_trio: ToyTrio) -> Iterator[Engine]:
    """The tuned model and the reference as terms of their own, the base as another, and all three as the pair that they are."""
    pairs = {
        "plus": LoadedPair(toy_trio.tuned),
        "minus": LoadedPair(toy_trio.reference, weight=-1.0),
        "itself": LoadedPair(toy_trio.base, weight=0.0),
        "pair": LoadedPair(toy_trio.tuned, toy_trio.reference, weight=0.0),
    }
    with Engine.from_models(toy_trio.base, tokenizer=toy_trio.tokenizer, pairs=pairs) as made:
        yield made


def kl(first: Tensor, second: Tensor) -> float:
    return float((first.exp() * (first - second)).sum())


Case = tuple[dict[str, Any], CompositionOptions, Scores]
NONE = CompositionOptions()
CASES: dict[str, Case] = {
    "a term": ({"plus": 0.5, "minus": 0.0}, NONE, lambda own: own.of("base") + 0.5 * own.of("tuned")),
    "a negative one": ({"plus": -0.25, "minus": 0.0}, NONE, lambda own: own.of("base") - 0.25 * own.of("tuned")),
    "two of them": (
        {"plus": 0.75, "minus": -0.25},
        NONE,
        lambda own: own.of("base") + 0.75 * own.of("tuned") - 0.25 * own.of("reference"),
    ),
    "a term beside a pair": (
        {"plus": 0.5, "minus": 0.0, "pair": 0.5},
        NONE,
        lambda own: own.of("base") + own.of("tuned") - 0.5 * own.of("reference"),
    ),
    "amplified, which terms have no part in": (
        {"plus": 0.5, "minus": 0.0, "pair": 1.0},
        CompositionOptions(amplification=2.0),
        lambda own: 2.0 * own.of("base") + 1.5 * own.of("tuned") - 2.0 * own.of("reference"),
    ),
    "a weight that follows the token": (
        {"plus": FirstTokens(num_tokens=5), "minus": 0.0},
        NONE,
        lambda own: own.of("base") + (1.0 if own.position < 5 else 0.0) * own.of("tuned"),
    ),
    "a gate, measured against the base": (
        {"plus": Gate(by="kl", above=3.0), "minus": 0.0},
        NONE,
        lambda own: own.of("base") + (1.0 if kl(own.of("tuned"), own.of("base")) > 3.0 else 0.0) * own.of("tuned"),
    ),
    "a prompt pair over the model of a term": (
        {"plus": 0.5, "minus": 0.0},
        CompositionOptions(prompt_pairs={"style": PromptPair(negative="Nobody", model="plus")}),
        lambda own: own.of("base") + 1.5 * own.of("tuned") - own.of("tuned", "Nobody"),
    ),
}


@pytest.mark.parametrize("speculation", [PLAIN, DRAFTED], ids=["plain", "drafted"])
def test_texts_are_those_of_the_slow_loop_in_one_batch(
    engine: Engine, judge: Judge, speculation: SpeculationOptions
) -> None:
    outputs = engine.generate(
        [PROMPT] * len(CASES),
        sampling=SamplingParams(temperature=0.0, max_tokens=16),
        reward_weights=[weights for weights, _, _ in CASES.values()],
        composition=[composition for _, composition, _ in CASES.values()],
        speculation=speculation,
    )
    for (name, (_, _, scores)), output in zip(CASES.items(), outputs, strict=True):
        assert list(output.token_ids) == slow_loop(judge, PROMPT, scores, Draw()), name


def test_the_gate_is_open_at_some_tokens_and_closed_at_others(engine: Engine) -> None:
    """Or the case would judge a constant weight."""
    output = engine.generate(PROMPT, sampling=GREEDY, reward_weights=CASES["a gate, measured against the base"][0])
    assert 0.0 < output.intervention_rate < 1.0


@pytest.mark.parametrize("weight", [1.0, 0.3, -0.5])
def test_terms_of_opposite_signs_are_a_pair(engine: Engine, weight: float) -> None:
    sampling = SamplingParams(temperature=0.9, seed=3, max_tokens=24, ignore_eos=True)
    terms, pair = (
        engine.generate(PROMPT, sampling=sampling, reward_weights=weights)
        for weights in ({"plus": weight, "minus": -weight}, {"plus": 0.0, "minus": 0.0, "pair": weight})
    )
    assert terms.token_ids == pair.token_ids


def test_the_base_as_a_term_changes_its_own_coefficient(engine: Engine, judge: Judge) -> None:
    weights = {"plus": 0.5, "minus": 0.0, "itself": -0.6}
    output = engine.generate(PROMPT, sampling=SamplingParams(temperature=0.0, max_tokens=16), reward_weights=weights)
    scores: Scores = lambda own: 0.4 * own.of("base") + 0.5 * own.of("tuned")  # noqa: E731
    assert list(output.token_ids) == slow_loop(judge, PROMPT, scores, Draw())
    assert output.metrics.num_forwards["itself.tuned"] == 0, "it is the base's stream"


def test_a_term_at_weight_zero_is_not_run(engine: Engine) -> None:
    output = engine.generate(PROMPT, sampling=GREEDY, reward_weights=0.0)
    assert {name for name, number in output.metrics.num_forwards.items() if number} == {"base"}
    assert output.intervention_rate == 0.0


def test_scores_have_no_reference_and_sum_the_terms_own_word(engine: Engine, judge: Judge) -> None:
    completion = [50, 60, 70]
    weights = {"plus": 0.5, "minus": -0.25}
    score = engine.score(PROMPT, TokenIds(ids=tuple(completion)), reward_weights=weights)
    for place, token in enumerate(score.tokens):
        own = Written(judge, PROMPT, tuple(completion[:place]))
        tuned, reference = (float(own.of(name)[completion[place]]) for name in ("tuned", "reference"))
        assert (token.pairs["plus"].reference, token.pairs["minus"].reference) == (None, None)
        assert token.pairs["plus"].tuned == token.pairs["plus"].delta == pytest.approx(tuned, abs=1e-4)
        assert token.pairs["minus"].delta == pytest.approx(reference, abs=1e-4)
        assert token.pairs["pair"].delta == pytest.approx(tuned - reference, abs=1e-4)
        composed = (own.of("base") + 0.5 * own.of("tuned") - 0.25 * own.of("reference")).log_softmax(-1)
        assert token.composed == pytest.approx(float(composed[completion[place]]), abs=1e-4)
    assert score.reward("plus") == pytest.approx(sum(token.pairs["plus"].tuned for token in score.tokens))


def test_the_model_of_a_term_is_called_like_a_pairs_tuned_one(engine: Engine) -> None:
    names = list(engine.generate("a", sampling=GREEDY).metrics.num_forwards)
    assert names == ["base", "plus.tuned", "minus.tuned", "itself.tuned", "pair.tuned", "pair.reference"]
    assert engine.weights == {"plus": 1.0, "minus": -1.0, "itself": 0.0, "pair": 0.0}


# ---- from folders ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(trio: ToyTrio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `tuned` and `reference`, an adapter for the reference, and a small model of a shorter context."""
    path = tmp_path_factory.mktemp("terms")
    members = {"base": trio.base, "tuned": trio.tuned, "reference": trio.reference}
    for name, model in {**members, "short": make_model("llama", seed=9, context_len=64)}.items():
        model.save_pretrained(path / name)
        trio.tokenizer.save_pretrained(path / name)
    save_adapter(trio.reference, path / "adapter", seed=7)
    return path


CONFIG = EngineConfig(dtype="float32")


@pytest.mark.parametrize("kind", ["a folder", "an adapter"])
def test_a_term_is_loaded_from_a_folder(folders: Path, trio: ToyTrio, kind: str) -> None:
    model: Any = trio.tuned
    member = MemberConfig(source=str(folders / "tuned"))
    if kind == "an adapter":
        model = PeftModel.from_pretrained(copy.deepcopy(trio.reference), folders / "adapter").eval()
        member = MemberConfig(source=str(folders / "reference"), adapter=str(folders / "adapter"))
    pairs = {"safe": Term(member, weight=0.5)}
    with Engine.load(str(folders / "base"), pairs=pairs, config=CONFIG) as engine:
        assert engine.weights == {"safe": 0.5}
        output = engine.generate(PROMPT, sampling=SamplingParams(temperature=0.0, max_tokens=16))
        assert [own.name for own in engine.report().members] == ["base", "safe.tuned"]
    judge = Judge(ToyTrio(trio.base, model, trio.reference, trio.tokenizer))
    scores: Scores = lambda own: own.of("base") + 0.5 * own.of("tuned")  # noqa: E731
    assert list(output.token_ids) == slow_loop(judge, PROMPT, scores, Draw())


def test_an_adapter_term_shares_the_network_of_a_pair(folders: Path) -> None:
    member = MemberConfig(source=str(folders / "reference"), adapter=str(folders / "adapter"))
    pairs: dict[str, Any] = {
        "safe": Term(member),
        "chat": TunedPair(str(folders / "tuned"), str(folders / "reference")),
    }
    with Engine.load(str(folders / "base"), pairs=pairs, config=CONFIG) as engine:
        of = {own.name: own.network for own in engine.report().members}
        assert of["safe.tuned"] == of["chat.reference"]
        own = {"safe": 0.5, "chat": 0.0}
        both = [
            engine.generate(PROMPT, sampling=GREEDY, reward_weights=own, speculation=how) for how in (PLAIN, DRAFTED)
        ]
    assert both[0].token_ids == both[1].token_ids


def test_an_adapter_alone_is_refused_and_the_error_says_how_to_write_it(folders: Path) -> None:
    with pytest.raises(UnsupportedAdapterError, match=r"safe: .*Term\(MemberConfig\(source=<model>, adapter="):
        Engine.load(str(folders / "base"), pairs={"safe": Term(str(folders / "adapter"))}, config=CONFIG)


def test_what_would_be_loaded_is_told_without_loading(folders: Path) -> None:
    pairs = {"safe": Term(str(folders / "short"), weight=Gate(by="kl", above=0.1))}
    report = inspect_trio(str(folders / "base"), pairs, CONFIG)
    assert [(own.name, own.unsupported) for own in report.members] == [("base", None), ("safe.tuned", None)]
    assert context_len_of(str(folders / "base"), pairs) == 64
    assert context_len_of(str(folders / "base")) == 256
    with Engine.load(str(folders / "base"), pairs=pairs, config=CONFIG) as engine:
        assert engine.context_len == 64


# ---- vocabularies ------------------------------------------------------------------------------------------------------


def test_a_term_of_another_vocabulary_is_refused(trio: ToyTrio) -> None:
    tokenizers = {"base": trio.tokenizer, "safe.tuned": make_tokenizer(shuffle=True)}
    with pytest.raises(VocabularyMismatchError, match=r"safe\.tuned"):
        Engine.from_models(trio.base, tokenizer=tokenizers, pairs={"safe": LoadedPair(trio.tuned)})


@pytest.mark.parametrize("weight", [1.0, -0.5])
def test_tokens_that_only_a_term_has_are_kept(weight: float) -> None:
    """As of a pair: its own probability of them, and of all others the composition."""
    plain, base = make_tokenizer(chat=False), make_model("llama", seed=1, hidden_size=64)
    tuned = Member(chatml_model(2), chatml_tokenizer())
    with Engine.from_models(
        base,
        tokenizer={"base": plain, "safe.tuned": tuned.tokenizer},
        pairs={"safe": LoadedPair(tuned.model, weight=weight)},
        config=EngineConfig(tuned_only_tokens="keep"),
    ) as engine:
        outputs = [engine.generate("abc", sampling=GREEDY, speculation=how) for how in (PLAIN, DRAFTED)]
    known = Member(base, plain)  # nobody holds it now
    expected: list[int] = []
    while len(expected) < GREEDY.max_tokens:
        own = tuned.logits("abc", expected, tuned.tokenizer)[: VOCAB_SIZE + len(ADDED)]
        shared = known.logits("abc", expected, tuned.tokenizer)[:VOCAB_SIZE].log_softmax(-1)
        shared = (shared + weight * own[:VOCAB_SIZE].log_softmax(-1)).log_softmax(-1)
        kept = own.softmax(-1)[VOCAB_SIZE:]
        expected.append(int(torch.cat([shared + (1 - kept.sum()).log(), kept.log()]).argmax()))
    assert [list(output.token_ids) for output in outputs] == [expected, expected]
    assert max(expected) >= VOCAB_SIZE, "no kept token was generated"
