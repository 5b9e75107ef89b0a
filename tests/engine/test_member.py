"""The answer of one member alone, out of a trio that is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from eft_engine import (
    CompositionOptions,
    Engine,
    PromptOptions,
    PromptPair,
    SamplingParams,
    SpeculationOptions,
    TokenIds,
    Verbatim,
    errors,
)
from eft_engine.config import RewardWeights
from tests.engine.slow_loop import Draw, Judge, slow_loop
from tests.engine.test_kept_tokens import ADDED, Member, Trio, chatml_model, chatml_tokenizer
from tests.toy import VOCAB_SIZE, make_model, make_tokenizer, make_trio

PROMPT = "Once upon a time"
MEMBERS = {"base": "base", "chat.tuned": "tuned", "chat.reference": "reference"}


def alone(member: str) -> CompositionOptions:
    return CompositionOptions(member=member)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(make_trio("llama"))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with make_trio("llama").engine() as made:
        yield made


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_members_answer_alone_beside_the_composition(temperature: float, judge: Judge, engine: Engine) -> None:
    sampling = SamplingParams(temperature=temperature, seed=5, max_tokens=16)
    options = [CompositionOptions(), *map(alone, MEMBERS)]
    together = engine.generate([PROMPT] * 4, sampling=sampling, composition=options)
    assert together[0].token_ids == engine.generate(PROMPT, sampling=sampling).token_ids
    for (name, own), output in zip(MEMBERS.items(), together[1:], strict=True):
        expected = slow_loop(judge, PROMPT, lambda written, own=own: written.of(own), Draw(temperature, 5))
        assert list(output.token_ids) == expected, name
        assert [read for read, number in output.metrics.num_forwards.items() if number] == [name]
        assert output.reward_weights == {"chat": 0.0}
        streamed = engine.stream(PROMPT, sampling=sampling, composition=alone(name))
        assert [token for delta in streamed for token in delta.token_ids] == expected


@pytest.mark.parametrize("every_member", [True, False])
@pytest.mark.parametrize("name", MEMBERS)
def test_a_score_is_the_members_own(name: str, every_member: bool, judge: Judge, engine: Engine) -> None:
    written = slow_loop(judge, PROMPT, lambda own: own.of(MEMBERS[name]), Draw(max_tokens=8))
    scored = engine.score(PROMPT, TokenIds(ids=written), composition=alone(name), every_member=every_member)
    assert scored.is_greedy
    for place, token in enumerate(scored.tokens):
        for member, value in (("base", token.base), (MEMBERS[name], token.composed)):
            expected = judge.of(member, PROMPT, written[:place])[written[place]]
            assert value == pytest.approx(float(expected), abs=1e-3)


def test_it_reads_its_own_rendering(judge: Judge, engine: Engine) -> None:
    options = PromptOptions(reference=Verbatim(text=PROMPT))
    messages = [{"role": "user", "content": "hi"}]
    for member, prompt in (("chat.reference", PROMPT), ("chat.tuned", "<|user|>hi<|end|><|assistant|>")):
        found = engine.generate(
            messages,
            sampling=SamplingParams(temperature=0.0, max_tokens=8),
            prompt_options=options,
            composition=alone(member),
        )
        own = MEMBERS[member]
        assert list(found.token_ids) == slow_loop(
            judge, prompt, lambda written, own=own: written.of(own), Draw(max_tokens=8)
        )


def test_a_tuned_model_alone_writes_the_tokens_that_only_it_has() -> None:
    plain = make_tokenizer(chat=False)
    tuned = Member(chatml_model(2), chatml_tokenizer())
    reference = Member(make_model("llama", seed=3), plain)
    trio = Trio(Member(make_model("llama", seed=1, hidden_size=64), plain), {"chat": (tuned, reference)})
    expected: list[int] = []
    for _ in range(16):
        logits = tuned.logits("abc<|im_start|>", expected, tuned.tokenizer)
        expected.append(int(logits[: VOCAB_SIZE + len(ADDED)].argmax()))
    assert max(expected) >= VOCAB_SIZE, "or nothing is shown"
    sampling = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    with trio.engine() as engine:
        found = engine.generate("abc<|im_start|>", sampling=sampling, composition=alone("chat.tuned"))
        base = engine.generate("abc", sampling=sampling, composition=alone("base"))
        assert base.token_ids == engine.generate("abc", sampling=sampling, reward_weights=0.0).token_ids
    assert list(found.token_ids) == expected
    assert max(base.token_ids) < VOCAB_SIZE


@pytest.mark.parametrize(
    ("member", "weights", "told"),
    [
        ("chat", None, "there is no model 'chat'; this engine has base, chat.tuned, chat.reference"),
        ("", None, "there is no model ''"),
        ("base", 1.0, "weights are of a composition"),
        ("chat.tuned", {"chat": 0.0}, "weights are of a composition"),
    ],
)
def test_what_is_wrong_is_told(engine: Engine, member: str, weights: RewardWeights, told: str) -> None:
    with pytest.raises(errors.InvalidOptionError, match=told):
        engine.generate(PROMPT, composition=alone(member), reward_weights=weights)
    with pytest.raises(errors.InvalidOptionError, match=told):
        engine.score(PROMPT, "x", composition=alone(member), reward_weights=weights)


@pytest.mark.parametrize(
    "beside",
    [
        {"amplification": 2.0},
        {"conservative_top_p": 0.9},
        {"min_plausibility": 0.1},
        {"tuned_plausibility": 0.1},
        {"prompt_pairs": {"p": PromptPair(negative="x")}},
        {"call_decision": {"openings": ["<call>"]}},
    ],
)
def test_what_would_do_nothing_beside_a_member_is_refused(beside: dict[str, Any]) -> None:
    with pytest.raises(
        errors.InvalidOptionError, match=f"answers alone, so that {next(iter(beside))} would do nothing"
    ):
        CompositionOptions(member="base", **beside)


def test_prompt_lookup_drafts_for_it_and_changes_nothing(engine: Engine) -> None:
    prompt = "abcabcabcabc"
    sampling = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    always = SpeculationOptions(adaptive=False)
    plain, drafted = (
        engine.generate(prompt, sampling=sampling, composition=alone("chat.tuned"), speculation=own)
        for own in (SpeculationOptions(drafter="none"), always)
    )
    assert drafted.token_ids == plain.token_ids
    assert drafted.metrics.num_drafted > 0
