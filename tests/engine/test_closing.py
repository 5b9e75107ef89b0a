"""Sentences of grammars inside a budget: cut as it comes, or brought to an end where that is asked for, and told apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from eft_engine import Engine, JsonSchema, Lark, Regex, RequestOutput, SamplingParams, SpeculationOptions
from eft_engine.config import Grammar
from eft_engine.engine.step import Stepper
from eft_engine.text.endings import EndingSearch
from tests.sentences import CASES, INTEGER, SENTENCES, STRING, obj
from tests.toy import END_ID, make_trio

PERSON = JsonSchema(json_schema=obj(name=STRING, age=INTEGER))
SHORTEST_PERSON = len('{"name": "", "age": 0}')


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A random trio: it has no idea of JSON, and of when to end."""
    with make_trio("llama").engine(max_num_seqs=64, prefill_chunk_len=256, max_warm_prefixes=0) as engine:
        yield engine


def generate(
    engine: Engine, grammar: Grammar, budgets: list[int], *, closes: bool, drafter: str = "none", **sampling: Any
) -> list[RequestOutput]:
    """One request per budget, all together; every other one is greedy."""
    params = [
        SamplingParams(
            **{"temperature": float(index % 2), "seed": index, **sampling},
            max_tokens=budget,
            grammar=grammar,
            close_within_budget=closes,
        )
        for index, budget in enumerate(budgets)
    ]
    speculation = SpeculationOptions(drafter=drafter, adaptive=False, max_draft_tokens=4)
    prompts = [f"{index}" for index in range(len(budgets))]
    return engine.generate(prompts, sampling=params, speculation=speculation)


@pytest.mark.parametrize("name", CASES)
def test_every_budget_that_holds_an_end_gives_a_sentence_whatever_drafts(engine: Engine, name: str) -> None:
    """And the answer says exactly then that it was closed when the text would have been another one without."""
    sentences = SENTENCES[name]
    shortest = len(sentences.shortest.encode())
    budgets = [*range(shortest, shortest + 7), shortest + 12, shortest + 20]
    closed = generate(engine, sentences.grammar, budgets, closes=True)
    left_alone = generate(engine, sentences.grammar, budgets, closes=False)
    for budget, output, plain in zip(budgets, closed, left_alone, strict=True):
        assert output.finish_reason == "stop"
        assert len(output.token_ids) <= budget
        sentences.check(output.text)
        assert output.closed_within_budget == (output.token_ids != plain.token_ids)
        assert output.closed_within_budget or plain.finish_reason == "stop"
        assert not plain.closed_within_budget
    drafted = generate(engine, sentences.grammar, budgets, closes=True, drafter="auto")
    assert [(own.token_ids, own.text, own.closed_within_budget) for own in drafted] == [
        (own.token_ids, own.text, own.closed_within_budget) for own in closed
    ]


@pytest.mark.parametrize("name", CASES)
def test_budget_that_holds_no_end_cuts_the_text_that_comes_by_itself(engine: Engine, name: str) -> None:
    sentences = SENTENCES[name]
    budgets = [len(sentences.shortest.encode()) - 1] * 4
    for output, plain in zip(
        generate(engine, sentences.grammar, budgets, closes=True),
        generate(engine, sentences.grammar, budgets, closes=False),
        strict=True,
    ):
        assert (output.finish_reason, output.closed_within_budget) == ("length", False)
        assert output.token_ids == plain.token_ids


def test_by_default_a_text_is_cut_and_says_so(engine: Engine) -> None:
    assert SamplingParams().close_within_budget is False
    budgets = list(range(1, 40))
    for budget, output in zip(budgets, generate(engine, PERSON, budgets, closes=False), strict=True):
        assert output.finish_reason == "length"
        assert output.stop_reason is None
        assert len(output.token_ids) == budget
        assert not output.closed_within_budget
        state = engine._requests._grammars.compile(PERSON)
        assert state.valid_prefix(output.token_ids) == list(output.token_ids)


def test_no_way_out_is_looked_for_unless_that_is_asked_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    num_searches = 0
    find = EndingSearch.find

    def counting(self: EndingSearch, *args: Any, **options: Any) -> Any:
        nonlocal num_searches
        num_searches += 1
        return find(self, *args, **options)

    monkeypatch.setattr(EndingSearch, "find", counting)
    generate(engine, PERSON, [30], closes=False)
    assert num_searches == 0
    generate(engine, PERSON, [30], closes=True)
    assert num_searches > 0


def test_option_without_a_grammar_changes_nothing(engine: Engine) -> None:
    plain = engine.generate("abc", sampling=SamplingParams(max_tokens=9, temperature=0.0))
    output = engine.generate("abc", sampling=SamplingParams(max_tokens=9, temperature=0.0, close_within_budget=True))
    assert output.token_ids == plain.token_ids
    assert not output.closed_within_budget


def test_budget_is_what_the_context_leaves(engine: Engine) -> None:
    bias = {engine.tokenizer.encode("c")[0]: -1000.0}
    (output,) = generate(engine, Regex(pattern="(a|b){256,}c"), [400], closes=True, logit_bias=bias)
    assert (output.finish_reason, output.closed_within_budget) == ("length", False)
    (output,) = generate(engine, Regex(pattern="(a|b){200,}c"), [400], closes=True, logit_bias=bias)
    assert (output.finish_reason, output.closed_within_budget) == ("stop", True)
    assert output.usage.total_tokens == 256


def test_pieces_of_a_stream_are_the_text_and_the_last_one_says_that_it_was_closed(engine: Engine) -> None:
    for budget in range(SHORTEST_PERSON, SHORTEST_PERSON + 8):
        sampling = SamplingParams(
            max_tokens=budget, temperature=1.0, seed=budget, grammar=PERSON, close_within_budget=True
        )
        whole = engine.generate("?", sampling=sampling)
        deltas = list(engine.stream("?", sampling=sampling))
        assert "".join(delta.text_delta for delta in deltas) == whole.text
        assert tuple(own for delta in deltas for own in delta.token_ids) == whole.token_ids
        assert deltas[-1].output is not None
        assert deltas[-1].output.closed_within_budget is whole.closed_within_budget is True
        assert deltas[-1].finish_reason == "stop"


@pytest.mark.parametrize("drafter", ["none", "tuned", "auto"])
def test_step_that_is_repeated_closes_the_same_text(
    engine: Engine, drafter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step fails after its tokens were chosen and before they are committed; then it is tried again by halves."""
    budgets = [30, 33, 36, 39]
    wanted = generate(engine, PERSON, budgets, closes=True, drafter=drafter, logprobs=1)
    original, num_calls = Stepper._token_logprobs, 0

    def failing(self: Stepper, *args: Any, **options: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls in (7, 30, 55):
            raise RuntimeError("pretended")
        return original(self, *args, **options)

    monkeypatch.setattr(Stepper, "_token_logprobs", failing)
    with make_trio("llama").engine(max_num_seqs=4, prefill_chunk_len=256) as own_engine:
        outputs = generate(own_engine, PERSON, budgets, closes=True, drafter=drafter, logprobs=1)
    assert num_calls > 55
    assert [(own.token_ids, own.closed_within_budget) for own in outputs] == [
        (own.token_ids, own.closed_within_budget) for own in wanted
    ]


def test_text_is_closed_without_tokens_that_are_forbidden_or_stop_it(engine: Engine) -> None:
    grammar = Regex(pattern="[ab]*(x|yyyy)")
    x, y = (engine.tokenizer.encode(text)[0] for text in "xy")
    (output,) = generate(engine, grammar, [12], closes=True, temperature=0.0, logit_bias={x: -math.inf, y: -1000.0})
    assert output.text.endswith("yyyy")
    assert len(output.token_ids) == 12
    (output,) = generate(
        engine, grammar, [12], closes=True, temperature=0.0, stop_token_ids=(x,), logit_bias={x: -100.0}
    )
    assert output.stop_reason != x
    assert output.finish_reason == "stop"


def test_thought_and_call_are_closed_one_after_the_other(engine: Engine) -> None:
    """Special tokens end what would go on for ever: they are tried first."""
    end = engine.tokenizer.convert_tokens_to_ids("<|assistant|>")
    grammar = Lark(
        grammar=f'start: <[^{end},{END_ID}]>* <[{end}]> args\nargs: %json {{"type": "object", "properties": {{}}}}'
    )
    bias = {end: -1000.0}
    (cut,) = generate(engine, grammar, [20], closes=False, logit_bias=bias)
    assert cut.finish_reason == "length"
    (output,) = generate(engine, grammar, [20], closes=True, logit_bias=bias, skip_special_tokens=False)
    assert output.finish_reason == "stop"
    assert output.text.endswith("<|assistant|>{}")
    assert output.closed_within_budget
