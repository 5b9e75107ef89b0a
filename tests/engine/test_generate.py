"""Answers: identities of the composition, sampling, stopping, streaming, async, log-probabilities, and per-request everything."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from scipy import stats

from eft_engine import CompositionOptions, Engine, LoadedPair, PlainText, PromptOptions, SamplingParams
from eft_engine.errors import ContextOverflowError, EmptyPromptError, InvalidOptionError
from tests.toy import END_ID, ToyTrio, make_model, make_tokenizer, make_trio, naive_greedy

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
FALSE_ALARM = 1e-6


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A second copy of the toy trio under one pair, `chat`; the first one stays free to judge it."""
    with make_trio("llama").engine() as engine:
        yield engine


@torch.inference_mode()
def logprobs_of(trio: ToyTrio, prompt_ids: list[int], weights: Mapping[str, float] | None = None) -> torch.Tensor:
    """Composed log-probabilities of the next token by the formula."""
    weight = (weights or {}).get("chat", 1.0)
    rows = [
        m(torch.tensor([prompt_ids])).logits[0, -1].log_softmax(-1) for m in (trio.base, trio.tuned, trio.reference)
    ]
    return (rows[0] + weight * (rows[1] - rows[2])).log_softmax(-1)


def alone(model: Any, prompt: str) -> tuple[int, ...]:
    tokenizer = make_tokenizer()
    with Engine.from_models(model, tokenizer=tokenizer) as engine:
        return engine.generate(prompt, sampling=GREEDY).token_ids


def test_weight_zero_is_the_base() -> None:
    base, tuned, reference = (make_model("llama", seed=seed) for seed in (1, 2, 3))
    with ToyTrio(base, tuned, reference, make_tokenizer()).engine() as engine:
        out = engine.generate("The sky", sampling=GREEDY, reward_weights=0.0)
    assert out.token_ids == alone(make_model("llama", seed=1), "The sky")


def test_tuned_that_is_the_reference_leaves_the_base() -> None:
    base, small = make_model("llama", seed=1), make_model("llama", seed=2)
    with ToyTrio(base, small, small, make_tokenizer()).engine() as engine:
        out = engine.generate("The sky", sampling=GREEDY, reward_weights=1.7)
    assert out.token_ids == alone(make_model("llama", seed=1), "The sky")
    assert out.metrics.num_forwards["chat.tuned"] == 0


def test_base_that_is_the_reference_gives_the_tuned_model_at_weight_one() -> None:
    base, tuned = make_model("llama", seed=1), make_model("llama", seed=2)
    with ToyTrio(base, tuned, base, make_tokenizer()).engine() as engine:
        out = engine.generate("The sky", sampling=GREEDY, reward_weights=1.0)
    assert out.token_ids == alone(make_model("llama", seed=2), "The sky")


def test_several_pairs_and_amplification_follow_the_formula() -> None:
    models = [make_model("llama", seed=seed) for seed in range(5)]
    tokenizer = make_tokenizer()
    ids = tokenizer.encode("The sky")
    expected = list(ids)
    with torch.inference_mode():
        for _ in range(12):
            base, t1, r1, t2, r2 = (m(torch.tensor([expected])).logits[0, -1].log_softmax(-1) for m in models)
            up_scaled = 0.4 * (t1 + 1.3 * (base - r1)) - 0.3 * (t2 + 1.3 * (base - r2))
            expected.append(int(((1 - 0.4 + 0.3) * base + up_scaled).argmax()))
    pairs = {"a": LoadedPair(models[1], models[2]), "b": LoadedPair(models[3], models[4], weight=-0.3)}
    with Engine.from_models(models[0], tokenizer=tokenizer, pairs=pairs) as engine:
        assert engine.weights == {"a": 1.0, "b": -0.3}
        out = engine.generate(
            "The sky", sampling=GREEDY, reward_weights={"a": 0.4}, composition=CompositionOptions(amplification=1.3)
        )
    assert list(out.token_ids) == expected[len(ids) :]
    assert out.reward_weights == {"a": 0.4, "b": -0.3}


def test_conservative_mode_follows_its_rule(engine: Engine, toy_trio: ToyTrio) -> None:
    ids = toy_trio.tokenizer.encode("The sky")
    expected = list(ids)
    with torch.inference_mode():
        for _ in range(12):
            base, tuned, reference = (
                m(torch.tensor([expected])).logits[0, -1].log_softmax(-1)
                for m in (toy_trio.base, toy_trio.tuned, toy_trio.reference)
            )
            order = tuned.argsort(descending=True)
            before = tuned[order].exp().cumsum(0) - tuned[order].exp()
            scores = tuned.clone()
            inside = order[before < 0.6]
            scores[inside] = (base + tuned - reference)[inside]
            expected.append(int(scores.argmax()))
    out = engine.generate("The sky", sampling=GREEDY, composition=CompositionOptions(conservative_top_p=0.6))
    assert list(out.token_ids) == expected[len(ids) :]


def test_members_may_read_their_own_rendering(engine: Engine, toy_trio: ToyTrio) -> None:
    messages = [{"role": "user", "content": "Why?"}]
    tokenizer = toy_trio.tokenizer
    small = tokenizer.encode("<|user|>Why?<|end|><|assistant|>")
    large = tokenizer.encode("Question: Why?\n\nAnswer:")
    made: list[int] = []
    with torch.inference_mode():
        for _ in range(12):
            base = toy_trio.base(torch.tensor([large + made])).logits[0, -1].log_softmax(-1)
            tuned, reference = (
                m(torch.tensor([small + made])).logits[0, -1].log_softmax(-1)
                for m in (toy_trio.tuned, toy_trio.reference)
            )
            made.append(int((base + 0.5 * (tuned - reference)).argmax()))
    options = PromptOptions(base=PlainText())
    out = engine.generate(messages, sampling=GREEDY, reward_weights=0.5, prompt_options=options)
    assert list(out.token_ids) == made
    assert out.usage.prompt_tokens == len(large)


def test_sampled_tokens_follow_the_composed_distribution(engine: Engine, toy_trio: ToyTrio) -> None:
    draws = 3000
    samplings = [SamplingParams(max_tokens=1, temperature=1.5, seed=seed) for seed in range(draws)]
    outs = engine.generate(["The sky"] * draws, sampling=samplings, reward_weights=0.5)
    counts = Counter(out.token_ids[0] for out in outs)
    logprobs = logprobs_of(toy_trio, toy_trio.tokenizer.encode("The sky"), {"chat": 0.5})
    expected = ((logprobs / 1.5).softmax(-1) * draws).tolist()
    common = [token for token, count in enumerate(expected) if count >= 5]
    rest = draws - sum(expected[token] for token in common)
    observed = [counts[token] for token in common] + [sum(counts.values()) - sum(counts[token] for token in common)]
    assert len(common) > 3
    assert stats.chisquare(observed, [expected[token] for token in common] + [rest]).pvalue > FALSE_ALARM


def test_a_seed_gives_its_text_whatever_the_batch(engine: Engine) -> None:
    sampling = SamplingParams(temperature=1.0, seed=42, max_tokens=15, ignore_eos=True)
    alone_out = engine.generate("The sky", sampling=sampling, reward_weights=0.5)
    others = [SamplingParams(temperature=0.7, max_tokens=20, seed=seed) for seed in range(4)]
    batch = engine.generate(
        ["a", "The sky", "bb" * 20, "c"], sampling=[others[0], sampling, *others[1:3]], reward_weights=0.5
    )
    assert batch[1].token_ids == alone_out.token_ids
    different = engine.generate(
        "The sky", sampling=SamplingParams(**sampling.model_dump() | {"seed": 43}), reward_weights=0.5
    )
    assert different.token_ids != alone_out.token_ids


def test_without_a_seed_texts_differ(engine: Engine) -> None:
    outs = engine.generate(["The sky"] * 4, sampling=SamplingParams(max_tokens=12, temperature=1.5, ignore_eos=True))
    assert len({out.token_ids for out in outs}) > 1


def test_stream_joins_to_generate(engine: Engine) -> None:
    deltas = list(engine.stream("naïve – 😀", sampling=GREEDY, reward_weights=0.5))
    out = engine.generate("naïve – 😀", sampling=GREEDY, reward_weights=0.5)
    assert "".join(delta.text_delta for delta in deltas) == out.text
    assert tuple(token for delta in deltas for token in delta.token_ids) == out.token_ids
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    last = deltas[-1].output
    assert last is not None
    assert (last.text, last.finish_reason, last.usage.completion_tokens) == (out.text, "length", 12)


async def test_async_gives_what_sync_gives(engine: Engine) -> None:
    sync = engine.generate(["a", "b"], sampling=GREEDY, reward_weights=[0.0, 0.5])
    both = await engine.agenerate(["a", "b"], sampling=GREEDY, reward_weights=[0.0, 0.5])
    one = await engine.agenerate("a", sampling=GREEDY, reward_weights=0.0)
    pieces = [delta.text_delta async for delta in engine.astream("b", sampling=GREEDY, reward_weights=0.5)]
    assert [out.token_ids for out in both] == [out.token_ids for out in sync]
    assert one.token_ids == sync[0].token_ids
    assert "".join(pieces) == sync[1].text
    scored, same = await engine.ascore("a", "bc"), engine.score("a", "bc")
    assert [token.base for token in scored.tokens] == [token.base for token in same.tokens]


async def test_async_requests_run_side_by_side_without_blocking_the_loop(engine: Engine) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)  # a loop that never sleeps takes the interpreter away from the engine's thread

    ticker = asyncio.create_task(tick())
    outs = await asyncio.gather(*(engine.agenerate(letter, sampling=GREEDY) for letter in "abcd"))
    ticker.cancel()
    assert [out.token_ids for out in outs] == [engine.generate(letter, sampling=GREEDY).token_ids for letter in "abcd"]
    assert ticks > 10


@pytest.mark.parametrize("span", [(2, 3), (3, 6), (0, 1)])
def test_stop_string_ends_the_text_before_itself(engine: Engine, span: tuple[int, int]) -> None:
    text = engine.generate("The sky", sampling=GREEDY, reward_weights=0.5).text
    stop = text[span[0] : span[1]]
    stopped = SamplingParams(temperature=0.0, max_tokens=12, stop=["never there", stop])
    deltas = list(engine.stream("The sky", sampling=stopped, reward_weights=0.5))
    out = deltas[-1].output
    assert out is not None
    assert (out.text, out.finish_reason, out.stop_reason) == (text[: text.index(stop)], "stop", stop)
    assert "".join(delta.text_delta for delta in deltas) == out.text


def test_stop_token_ends_the_text_without_its_own(engine: Engine) -> None:
    plain = engine.generate("The sky", sampling=GREEDY, reward_weights=0.5)
    token_id = plain.token_ids[4]
    first = plain.token_ids.index(token_id)
    stopped = SamplingParams(temperature=0.0, max_tokens=12, stop_token_ids=(token_id,))
    out = engine.generate("The sky", sampling=stopped, reward_weights=0.5)
    assert out.token_ids == plain.token_ids[: first + 1]
    assert (out.finish_reason, out.stop_reason) == ("stop", token_id)
    assert out.text == engine.tokenizer.decode(plain.token_ids[:first], skip_special_tokens=True)


def test_end_token_of_any_member_ends_the_text(toy_trio: ToyTrio) -> None:
    tuned = make_model("llama", seed=2)
    tuned.generation_config.eos_token_id = [97]
    forced = {"logit_bias": {97: 100.0}, "temperature": 0.0, "max_tokens": 5}
    base, reference = make_model("llama", seed=1), make_model("llama", seed=3)
    with ToyTrio(base, tuned, reference, make_tokenizer()).engine() as engine:
        ended = engine.generate("a", sampling=SamplingParams(**forced))
        went_on = engine.generate("a", sampling=SamplingParams(**forced, ignore_eos=True))
        other = engine.generate("a", sampling=SamplingParams(**forced | {"logit_bias": {END_ID: 100.0}}))
    assert (ended.token_ids, ended.text, ended.finish_reason) == ((97,), "", "stop")
    assert (went_on.token_ids, went_on.finish_reason) == ((97,) * 5, "length")
    assert other.token_ids == (END_ID,)


def test_context_caps_the_answer(engine: Engine) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=50, ignore_eos=True)
    out = engine.generate("x" * 250, sampling=sampling)
    assert (len(out.token_ids), out.finish_reason) == (6, "length")


def test_prompt_that_fills_the_context_is_refused_with_both_lengths(engine: Engine) -> None:
    with pytest.raises(ContextOverflowError, match="256 tokens and the context holds 256") as caught:
        engine.generate("x" * 256)
    assert (caught.value.prompt_len, caught.value.context_len) == (256, 256)


def test_logprobs_are_those_of_the_formula(engine: Engine, toy_trio: ToyTrio) -> None:
    sampling = SamplingParams(temperature=0.7, seed=3, top_k=5, max_tokens=4, logprobs=3, repetition_penalty=1.5)
    out = engine.generate("The sky", sampling=sampling, reward_weights=0.5)
    ids = toy_trio.tokenizer.encode("The sky")
    assert out.logprobs is not None
    for position, entry in enumerate(out.logprobs):
        before = ids + list(out.token_ids[:position])
        expected = logprobs_of(toy_trio, before, {"chat": 0.5})
        assert entry.token_id == out.token_ids[position]
        assert entry.logprob == pytest.approx(float(expected[entry.token_id]), abs=1e-4)
        assert [top.token_id for top in entry.top] == expected.topk(3).indices.tolist()
        assert [top.logprob for top in entry.top] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)
        assert entry.token == toy_trio.tokenizer.decode([entry.token_id])
        with torch.inference_mode():
            base = toy_trio.base(torch.tensor([before])).logits[0, -1].log_softmax(-1)
        assert entry.members["base"] == pytest.approx(float(base[entry.token_id]), abs=1e-4)
        assert set(entry.members) == {"base", "chat.tuned", "chat.reference"}
    assert engine.generate("a", sampling=GREEDY).logprobs is None


def test_repetition_penalty_is_that_of_transformers(engine: Engine, toy_trio: ToyTrio) -> None:
    base = make_model("llama", hidden_size=64, seed=1)
    ids = toy_trio.tokenizer.encode("The sky")
    theirs = base.generate(
        torch.tensor([ids]),
        do_sample=False,
        repetition_penalty=1.4,
        max_new_tokens=15,
        eos_token_id=None,
        pad_token_id=0,
    )
    sampling = SamplingParams(temperature=0.0, repetition_penalty=1.4, max_tokens=15, ignore_eos=True)
    ours = engine.generate("The sky", sampling=sampling, reward_weights=0.0)
    assert list(ours.token_ids) == theirs[0, len(ids) :].tolist()


def test_a_list_in_is_a_list_out_with_options_per_request(engine: Engine, toy_trio: ToyTrio) -> None:
    prompts = ["a", "bc", "def"]
    outs = engine.generate(
        prompts,
        sampling=[GREEDY, SamplingParams(temperature=0.0, max_tokens=2), GREEDY],
        reward_weights=[0.0, 1.0, {"chat": 2.0}],
    )
    assert [len(out.token_ids) for out in outs][1] <= 2
    assert [out.reward_weights for out in outs] == [{"chat": 0.0}, {"chat": 1.0}, {"chat": 2.0}]
    ids = toy_trio.tokenizer.encode("def")
    assert list(outs[2].token_ids) == naive_greedy(toy_trio, ids, weight=2.0, max_tokens=12, stop_at_end=False)
    conversations = [[{"role": "user", "content": letter}] for letter in "ab"]
    assert len(engine.generate(conversations, sampling=GREEDY)) == 2
    assert engine.generate([], sampling=GREEDY) == []


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        ({"sampling": [GREEDY]}, "sampling has 1 entries for 2 prompts"),
        ({"reward_weights": [1.0, 2.0, 3.0]}, "reward_weights has 3 entries"),
        ({"sampling": {"temperature": 0}}, "sampling must be a SamplingParams"),
        ({"composition": 3}, "composition must be a CompositionOptions"),
    ],
)
def test_options_that_do_not_fit_the_prompts_are_refused(
    engine: Engine, arguments: dict[str, Any], phrase: str
) -> None:
    with pytest.raises(InvalidOptionError, match=phrase):
        engine.generate(["a", "b"], **arguments)


def test_more_requests_than_slots_wait_in_order() -> None:
    with make_trio("llama").engine(max_num_seqs=2) as engine:
        outs = engine.generate([str(index) for index in range(7)], sampling=GREEDY, reward_weights=0.5)
        waited = [out.metrics.queue_s for out in outs]
        assert max(waited[:2]) < min(waited[2:])
        assert max(waited[2:4]) < min(waited[5:])
        assert all(out.metrics.ttft_s >= out.metrics.queue_s for out in outs)
        assert [out.token_ids for out in outs[:1]] == [
            engine.generate("0", sampling=GREEDY, reward_weights=0.5).token_ids
        ]


@pytest.mark.parametrize("length", [1, 3, 64, 65, 130])
def test_score_is_the_formula_token_by_token(engine: Engine, toy_trio: ToyTrio, length: int) -> None:
    prompt, completion = "The sky", ("is blue and " * 12)[:length]
    scores = engine.score(prompt, completion, reward_weights=0.5)
    ids = toy_trio.tokenizer.encode(prompt)
    made = toy_trio.tokenizer.encode(completion)
    with torch.inference_mode():
        rows = [
            m(torch.tensor([ids + made])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
            for m in (toy_trio.base, toy_trio.tuned, toy_trio.reference)
        ]
    composed = (rows[0] + 0.5 * (rows[1] - rows[2])).log_softmax(-1)
    assert [token.token_id for token in scores.tokens] == made
    for index, (token, token_id) in enumerate(zip(scores.tokens, made, strict=True)):
        pair = token.pairs["chat"]
        found = (token.base, pair.tuned, pair.reference, token.composed)
        expected = tuple(float(row[index, token_id]) for row in (*rows, composed))
        assert found == pytest.approx(expected, abs=1e-3)
    assert scores.reward("chat") == pytest.approx(sum(t.pairs["chat"].delta for t in scores.tokens))
    assert scores.reward_weights == {"chat": 0.5}


def test_score_refuses_what_cannot_be_scored(engine: Engine) -> None:
    with pytest.raises(EmptyPromptError, match="nothing to score"):
        engine.score("a", "")
    with pytest.raises(ContextOverflowError, match="do not fit") as caught:
        engine.score("a" * 200, "b" * 100)
    assert (caught.value.prompt_len, caught.value.context_len) == (300, 256)
