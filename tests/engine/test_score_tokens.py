"""Scoring of token ids: judged by three models, beside requests that generate, and in blocks that many requests share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from eft_engine import CompositionOptions, Engine, SamplingParams, ScoreOutput, TextToken, TokenIds, errors
from eft_engine.engine.sequence import SCORE_BLOCK_LEN, SCORE_STEP_LEN
from eft_engine.models.network import Block, Network
from tests.toy import ToyTrio, make_trio, naive_greedy

WEIGHT = 0.7
TEXT = "the cat sat on the mat, and what it did then was to sleep for most of an afternoon; nobody knew why. " * 2


@torch.inference_mode()
def judged(trio: ToyTrio, token_ids: Sequence[int]) -> torch.Tensor:
    """Composed log-probabilities `[tokens - 1, vocabulary]` of every token behind the first."""
    base, tuned, reference = (
        model(torch.tensor([list(token_ids)])).logits[0, :-1].log_softmax(dim=-1)
        for model in (trio.base, trio.tuned, trio.reference)
    )
    return (base + WEIGHT * (tuned - reference)).log_softmax(dim=-1)


def test_token_ids_are_scored_with_the_most_probable_ones() -> None:
    with make_trio("llama").engine() as engine:
        ids = engine.prompt_ids(TEXT)
        assert engine.decode(ids) == TEXT
        output = engine.score(TokenIds(ids=ids[:1]), TokenIds(ids=ids[1:]), reward_weights=WEIGHT, num_top=2)
    want = judged(make_trio("llama"), ids)
    values, top_ids = want.topk(2)
    for place, token in enumerate(output.tokens):
        assert token.composed == pytest.approx(float(want[place, ids[place + 1]]), abs=2e-4)
        assert [top.token_id for top in token.top] == top_ids[place].tolist()
        assert [top.logprob for top in token.top] == pytest.approx(values[place].tolist(), abs=2e-4)
        assert token.is_greedy is (int(top_ids[place, 0]) == ids[place + 1])
    assert not output.is_greedy


def test_what_greedy_decoding_writes_is_greedy() -> None:
    trio = make_trio("llama")
    greedy = naive_greedy(trio, trio.tokenizer.encode("a cat"), weight=WEIGHT, max_tokens=6, stop_at_end=False)
    with trio.engine() as engine:
        output = engine.score("a cat", TokenIds(ids=greedy), reward_weights=WEIGHT)
    assert output.is_greedy


async def test_scoring_beside_generation_changes_neither() -> None:
    with make_trio("llama").engine(max_num_seqs=8) as engine:
        ids = engine.prompt_ids(TEXT)
        sampling = SamplingParams(max_tokens=24, temperature=0.0)

        def score(engine: Engine) -> asyncio.Future[object]:
            return asyncio.ensure_future(engine.ascore(TokenIds(ids=ids[:1]), TokenIds(ids=ids[1:])))

        alone, text = await score(engine), engine.generate("a dog", sampling=sampling).text
        scores = [score(engine) for _ in range(5)]
        together = await engine.agenerate("a dog", sampling=sampling)
        assert together.text == text
        for other in await asyncio.gather(*scores):
            assert other.composed == pytest.approx(alone.composed, abs=1e-2)  # type: ignore[attr-defined]


def test_many_requests_share_the_tokens_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from eft_engine.engine.sequence import ScoringSequence
    from eft_engine.engine.step import Stepper

    most: list[tuple[int, int]] = []
    evaluate = Stepper._evaluate

    def watched(self: Stepper, sequences: Sequence[object]) -> object:
        rows = [1 + len(own.lookahead()) for own in sequences if isinstance(own, ScoringSequence)]
        most.append((len(rows), sum(rows)))
        return evaluate(self, sequences)  # type: ignore[arg-type]

    monkeypatch.setattr(Stepper, "_evaluate", watched)

    async def ask(engine: Engine) -> None:
        ids = engine.prompt_ids(TEXT)
        await asyncio.gather(*(engine.ascore(TokenIds(ids=ids[:1]), TokenIds(ids=ids[1:])) for _ in range(6)))

    with make_trio("llama").engine(max_num_seqs=8) as engine:
        asyncio.run(ask(engine))
    assert max(rows for _, rows in most) <= SCORE_STEP_LEN
    assert max(rows / count for count, rows in most if count) <= SCORE_BLOCK_LEN
    assert max(count for count, _ in most) > 2


def test_tokens_stand_for_texts_and_unknown_ones_are_refused() -> None:
    with make_trio("llama").engine() as engine:
        ids = engine.prompt_ids("ö<|end|>")
        assert engine.text_tokens(ids) == [
            TextToken(ids[0], "\ufffd", (0xC3,)), TextToken(ids[1], "\ufffd", (0xB6,)), TextToken(ids[2], "<|end|>"),
        ]  # fmt: skip
        same = SamplingParams(max_tokens=6, temperature=0.0)
        texts = engine.generate([TokenIds(ids=ids), TokenIds(ids=ids[:1])], sampling=same)
        assert texts[0].token_ids == engine.generate("ö<|end|>", sampling=same).token_ids
        for ask in (engine.generate, engine.count_prompt_tokens):
            with pytest.raises(errors.UnknownTokenError, match="100000"):
                ask(TokenIds(ids=(1, 100_000)))
        with pytest.raises(errors.UnknownTokenError):
            engine.decode([-1])
    for wrong in ((), (-1,), (True,), ("a",)):
        with pytest.raises(errors.InvalidOptionError):
            TokenIds(ids=wrong)


@pytest.mark.only_torch
def test_no_more_logits_are_computed_than_a_step_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long prompt and completion are, as logits are what takes memory: tokens x vocabulary floats."""
    most: list[int] = []
    ids = [index % 200 for index in range(2000)]
    with make_trio("llama", context_len=2048).engine(max_num_seqs=8) as engine:
        kind = type(engine._trio.networks[0])
        forward = kind.forward

        def watched(self: Network, blocks: Sequence[Block]) -> torch.Tensor:
            logits = forward(self, blocks)  # type: ignore[arg-type]
            most.append(len(logits))
            return logits

        monkeypatch.setattr(kind, "forward", watched)
        engine.score(TokenIds(ids=ids[:1]), TokenIds(ids=ids[1:]))
        assert len(most) >= 3 * len(ids) // SCORE_BLOCK_LEN
        engine.score(TokenIds(ids=ids), TokenIds(ids=(1,)))  # a prompt is read, and not scored
    assert max(most) == SCORE_BLOCK_LEN


# ---- lists ---------------------------------------------------------------------------------------------------------------

PROMPTS: list[Any] = ["a cat", TokenIds(ids=[3, 4, 5]), [{"role": "user", "content": "hi"}]]
COMPLETIONS: list[Any] = [" sat", TokenIds(ids=list(range(5, 5 + SCORE_BLOCK_LEN + 9))), TEXT]
COMPOSITIONS: list[Any] = [None, CompositionOptions(member="chat.tuned"), CompositionOptions(tuned_plausibility=0.5)]


def test_a_list_is_scored_together_and_as_one_by_one() -> None:
    def passes(engine: Engine) -> int:
        return sum(network.num_forwards for network in engine.stats().networks)

    weights = [0.7, None, 3.0]
    with make_trio("llama").engine(max_num_seqs=8) as engine:
        single = [
            engine.score(prompt, completion, reward_weights=weight, composition=composition, num_top=3)
            for prompt, completion, weight, composition in zip(PROMPTS, COMPLETIONS, weights, COMPOSITIONS, strict=True)
        ]
        one_by_one = passes(engine)
        together: list[ScoreOutput] = engine.score(
            PROMPTS, COMPLETIONS, reward_weights=weights, composition=COMPOSITIONS, num_top=3
        )
        assert passes(engine) - one_by_one < one_by_one
    for alone, beside in zip(single, together, strict=True):
        assert [token.token_id for token in beside.tokens] == [token.token_id for token in alone.tokens]
        assert [token.composed for token in beside.tokens] == pytest.approx(
            [token.composed for token in alone.tokens], abs=1e-4
        )
        assert [[top.token_id for top in token.top] for token in beside.tokens] == [
            [top.token_id for top in token.top] for token in alone.tokens
        ]
        assert beside.reward_weights == alone.reward_weights


async def test_a_list_is_scored_in_an_event_loop_too() -> None:
    with make_trio("llama").engine() as engine:
        found = await engine.ascore(["a", "b"], ["c", "d"], every_member=False)
        assert [own.composed for own in found] == pytest.approx(
            [engine.score(*texts).composed for texts in (("a", "c"), ("b", "d"))], abs=1e-4
        )
        assert engine.score([], []) == []


@pytest.mark.parametrize(
    ("prompt", "completion", "told"),
    [
        (["a", "b"], ["c"], "1 completions for a list of 2 prompts"),
        (["a", "b"], "c", "one completion for a list of 2 prompts"),
        ("a", ["b", "c"], "2 completions for one prompt"),
    ],
)
def test_lists_that_do_not_fit_are_refused(prompt: Any, completion: Any, told: str) -> None:
    with make_trio("llama").engine() as engine:
        with pytest.raises(errors.InvalidOptionError, match=told):
            engine.score(prompt, completion)
        with pytest.raises(errors.EmptyPromptError):
            engine.score(["a", "b"], ["c", ""])
        assert engine.stats().num_finished == engine.stats().num_running == 0, "nothing of it ran"
