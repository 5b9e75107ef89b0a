"""The questions and judges of the benchmarks of prompt pairs and gates."""

from __future__ import annotations

import pytest

from benchmarks.context_faithful import Case, atlas_cases, written_cases
from benchmarks.gates import CONSTANT, DOUBLED, NAMED
from benchmarks.prompt_pairs_cost import PROMPTS, runs_of
from benchmarks.smollm2 import NO_DRAFTS
from eft_engine import Engine
from eft_engine.evaluation.run import label_of
from eft_engine.weights import is_off, parts
from tests.toy import ToyTrio


@pytest.mark.parametrize("cases", [atlas_cases(40), written_cases(60)], ids=["atlas", "written"])
def test_every_question_has_a_passage_that_contradicts_and_one_that_agrees(cases: list[Case]) -> None:
    for case in cases:
        assert case.prompt.count(case.passage) == 1  # what is taken out is the passage, and all of it
        assert case.follows(f"It is {case.told[0]}.")
        if case.group == "alone":  # another sentence may name what is commonly known
            assert case.follows(case.passage)
        if case.kind == "contradicts":
            assert not case.follows(f"It is {case.known[0]}.")
            assert not case.follows(f"Not {case.known[0]} but {case.told[0]}.")
    kinds = [(case.group, case.kind) for case in cases]
    assert {kinds.count(kind) for kind in set(kinds)} == {len(cases) // len(set(kinds))}


def test_an_answer_without_what_the_passage_says_does_not_count() -> None:
    case = Case("contradicts", "alone", "-", "-", ("nine",), ("seven", "7"))
    assert [case.follows(text) for text in ("There are nine.", "There are 7.", "I cannot say.")] == [True, False, False]


def test_schedules_of_the_frontier_differ_and_none_is_off() -> None:
    chosen = [*CONSTANT, *NAMED, *DOUBLED]
    assert len({label_of(weight) for weight in chosen}) == len(chosen)
    assert not any(is_off(weight) for weight in chosen[1:])
    assert all(list(parts(weight)) for weight in chosen)


def test_a_prompt_pair_is_timed_against_as_many_rows(toy_trio: ToyTrio) -> None:
    """Both read the same prompts, in as many passes of the network."""
    with Engine.from_models(toy_trio.base, tokenizer=toy_trio.tokenizer, config=NO_DRAFTS) as engine:
        runs = runs_of(engine, 1, 3)
        passes = []
        for name in ("two rows", "prompt pair"):
            before = engine.stats().networks[0].num_tokens
            assert runs[name]() > 0.0
            passes.append(engine.stats().networks[0].num_tokens - before)
    assert passes[0] == passes[1]
    assert len(PROMPTS) == 2
