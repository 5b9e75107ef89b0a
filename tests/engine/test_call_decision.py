"""Whether a text is a call is decided under weights of its own: the slow loop decides too, and draws anew what is no call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from torch import Tensor

from eft_engine import (
    CallDecision,
    CompositionOptions,
    Engine,
    FirstTokens,
    GenerationDelta,
    Regex,
    RequestOutput,
    SamplingParams,
    SpeculationOptions,
)
from eft_engine.config import Thought
from eft_engine.decoding.races import SALT_REDRAWN
from tests.choice import thorough_but
from tests.engine.slow_loop import Draw, Judge, Scores, Written, slow_loop
from tests.toy import ToyTrio, architectures, make_trio

PROMPT = "Once upon a time"
OPENING = "e"
LETTERS = dict.fromkeys(range(64, 90), 6.0)
"""So that texts are letters: toy tokens of printable bytes are 33 less than these."""
WITHIN = 6
MAX_TOKENS = 14
SEEDS = range(6)


def scores_at(weight: float) -> Scores:
    return lambda own: own.of("base") + weight * (own.of("tuned") - own.of("reference"))


def decided(judge: Judge, draw: Draw, *, deciding: float, answering: float) -> tuple[list[int], int]:
    """What comes out, and how many tokens were thrown away for it."""
    first = slow_loop(judge, PROMPT, scores_at(deciding), draw)
    beginning = first[:WITHIN]
    if ord(OPENING) - 33 in beginning:
        return first, 0
    anew = Draw(draw.temperature, draw.seed, draw.max_tokens, SALT_REDRAWN, draw.bias)
    return slow_loop(judge, PROMPT, scores_at(answering), anew), len(beginning)  # type: ignore[arg-type]


def decision(**own: object) -> CompositionOptions:
    fields: dict[str, object] = {"weights": 0.0, "openings": [OPENING], "num_tokens": WITHIN}
    return CompositionOptions(call_decision=CallDecision(**{**fields, **own}))


@pytest.mark.parametrize(
    "architecture", thorough_but(("llama", "gemma3", "lfm2", "falcon_h1"), often={"llama", "lfm2"})
)
def test_calls_are_the_deciding_weights_and_words_the_answers(architecture: str) -> None:
    trio, judge = make_trio(architecture), Judge(make_trio(architecture))
    bias = {**LETTERS, ord(OPENING) - 33: 7.0}
    draws = [Draw(0.9, seed, MAX_TOKENS, bias=bias) for seed in SEEDS]
    expected = [decided(judge, draw, deciding=0.0, answering=1.0) for draw in draws]
    thrown = [number for _, number in expected]
    if architecture == "llama":
        assert 0 in thrown, "some are calls"
        assert any(thrown), "some are words"
    plain = slow_loop(judge, PROMPT, scores_at(1.0), draws[0])  # type: ignore[arg-type]
    sampling = [
        SamplingParams(temperature=0.9, seed=draw.seed, max_tokens=MAX_TOKENS, logit_bias=bias) for draw in draws
    ]
    for speculation in (SpeculationOptions(drafter="none"), SpeculationOptions(adaptive=False, max_draft_tokens=4)):
        with trio.engine(prefill_chunk_len=16) as engine:
            outputs = engine.generate(
                [PROMPT] * (len(draws) + 1),
                sampling=[*sampling, sampling[0]],
                reward_weights=1.0,
                composition=[*[decision()] * len(draws), CompositionOptions()],
                speculation=speculation,
            )
        assert list(outputs.pop().token_ids) == plain  # beside it an ordinary request
        for output, (token_ids, number) in zip(outputs, expected, strict=True):
            assert list(output.token_ids) == token_ids
            assert output.metrics.num_redrawn == number
            assert output.usage.completion_tokens == len(token_ids)
            steered = number > 0
            assert output.intervention_rate == float(steered)
            assert output.text == trio.tokenizer.decode(token_ids, skip_special_tokens=True)


@pytest.fixture(scope="module")
def trio() -> ToyTrio:
    return make_trio(architectures()[0])


@pytest.fixture(scope="module")
def engine(trio: ToyTrio) -> Iterator[Engine]:
    with trio.engine() as made:
        yield made


def ask(seed: int) -> dict[str, object]:
    bias = {**LETTERS, ord(OPENING) - 33: 7.0}
    return {
        "sampling": SamplingParams(temperature=0.9, seed=seed, max_tokens=MAX_TOKENS, logit_bias=bias, logprobs=2),
        "reward_weights": 1.0,
        "composition": decision(),
    }


def told(deltas: list[GenerationDelta]) -> RequestOutput:
    output = deltas[-1].output
    assert output is not None
    assert "".join(delta.text_delta for delta in deltas) == output.text
    assert [own for delta in deltas for own in delta.token_ids] == list(output.token_ids)
    assert tuple(own for delta in deltas for own in delta.logprobs) == (output.logprobs or ())
    return output


def test_a_stream_tells_nothing_that_is_thrown_away(engine: Engine) -> None:
    async def streamed(seed: int) -> list[GenerationDelta]:
        return [delta async for delta in engine.astream(PROMPT, **ask(seed))]  # type: ignore[arg-type]

    redrawn = []
    for seed in SEEDS:
        whole = engine.generate(PROMPT, **ask(seed))  # type: ignore[call-overload]
        deltas = list(engine.stream(PROMPT, **ask(seed)))  # type: ignore[arg-type]
        assert told(deltas).token_ids == told(asyncio.run(streamed(seed))).token_ids == whole.token_ids
        redrawn.append(whole.metrics.num_redrawn)
        assert len(whole.logprobs) == len(whole.token_ids)
        assert whole.metrics.ttft_s <= whole.metrics.total_s
    assert len(set(redrawn)) > 1


def test_a_thought_comes_at_once_and_is_kept() -> None:
    """Its weights are the request's; what is decided, and drawn anew, stands behind it."""
    trio, judge = make_trio(architectures()[0]), Judge(make_trio(architectures()[0]))
    thought = Thought(opening="<", closing="b", is_open=True)
    bias = {**LETTERS, ord(OPENING) - 33: 7.0, ord("b") - 33: 8.0}
    options = decision(thought=thought)
    found = set()
    with trio.engine() as engine:
        for seed in range(20):
            if found == {True, False}:
                break
            draw = Draw(0.9, seed, 18, bias=bias)
            thinking = slow_loop(judge, PROMPT, scores_at(1.0), draw)  # type: ignore[arg-type]
            if ord("b") - 33 not in thinking[:12]:
                continue
            kept = thinking[: thinking.index(ord("b") - 33) + 1]
            first = slow_loop(judge, PROMPT, scores_at(0.0), draw, written=kept)  # type: ignore[arg-type]
            beginning = first[len(kept) : len(kept) + WITHIN]
            is_call = ord(OPENING) - 33 in beginning
            anew = Draw(0.9, seed, 18, SALT_REDRAWN, bias)
            expected = (
                first if is_call else slow_loop(judge, PROMPT, scores_at(1.0), anew, written=kept)  # type: ignore[arg-type]
            )
            for drafter in ("none", "auto"):
                deltas = list(
                    engine.stream(
                        PROMPT,
                        sampling=SamplingParams(temperature=0.9, seed=seed, max_tokens=18, logit_bias=bias),
                        reward_weights=1.0,
                        composition=options,
                        speculation=SpeculationOptions(drafter=drafter, adaptive=False),
                    )
                )
                output = told(deltas)
                assert list(output.token_ids) == expected
                assert output.metrics.num_redrawn == (0 if is_call else len(beginning))
            found.add(is_call)
    assert found == {True, False}


def test_weights_that_follow_the_token_begin_anew_with_it(engine: Engine) -> None:
    """Ten tokens of the text that is told, not of the one that was thrown away."""
    judge = Judge(make_trio(architectures()[0]))
    bias = dict.fromkeys((ord(OPENING) - 33,), -100.0)
    output = engine.generate(
        PROMPT,
        sampling=SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, logit_bias=bias),
        reward_weights=FirstTokens(num_tokens=10),
        composition=decision(),
    )

    def scores(own: Written) -> Tensor:
        weight = 1.0 if own.position < 10 else 0.0
        return own.of("base") + weight * (own.of("tuned") - own.of("reference"))

    assert list(output.token_ids) == slow_loop(judge, PROMPT, scores, Draw(max_tokens=MAX_TOKENS, bias=bias))
    assert output.metrics.num_redrawn == WITHIN


def test_nothing_is_decided_where_weights_are_the_same(engine: Engine) -> None:
    asked = ask(3) | {"reward_weights": 0.0}
    output = engine.generate(PROMPT, **asked)  # type: ignore[call-overload]
    plain = engine.generate(PROMPT, **asked | {"composition": None})  # type: ignore[call-overload]
    assert output.token_ids == plain.token_ids
    assert output.metrics.num_redrawn == 0


def test_texts_that_end_early_are_drawn_anew_too(engine: Engine) -> None:
    """A text of which the base's words end before `num_tokens` is no call either."""
    output = engine.generate(
        PROMPT,
        sampling=SamplingParams(temperature=0.0, max_tokens=4),
        reward_weights=1.0,
        composition=decision(num_tokens=64, openings=["never written"]),
    )
    assert output.metrics.num_redrawn == 4
    plain = engine.generate(PROMPT, sampling=SamplingParams(temperature=0.0, max_tokens=4), reward_weights=1.0)
    assert output.token_ids == plain.token_ids
    assert plain.text == output.text


def test_words_are_held_to_a_grammar_of_their_own(engine: Engine) -> None:
    """Which keeps calls out of what is drawn anew, behind a thought."""
    options = decision(otherwise=Regex(pattern="[^e]*"))
    found = [engine.generate(PROMPT, **ask(seed) | {"composition": options}) for seed in SEEDS]  # type: ignore[call-overload]
    words = [output.text for output in found if output.metrics.num_redrawn]
    assert words
    assert not any(OPENING in text for text in words)
    thinking = decision(
        thought=Thought(opening="<", closing="b", is_open=True), otherwise=Regex(pattern="[^b]*b[^e]*"), num_tokens=2
    )
    bias = {**LETTERS, ord(OPENING) - 33: 8.0, ord("b") - 33: 8.0}
    texts = []
    for seed in range(12):
        output = engine.generate(
            PROMPT,
            sampling=SamplingParams(
                temperature=0.9, seed=seed, max_tokens=20, logit_bias=bias, grammar=Regex(pattern="(.|\n)*")
            ),
            reward_weights=1.0,
            composition=thinking,
        )
        texts += [output.text] if output.metrics.num_redrawn else []
    assert texts
    assert not any(OPENING in text.partition("b")[2] for text in texts)
