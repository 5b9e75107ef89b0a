"""Constrained generation: always valid, cut or closed in time, the same text with and without drafts."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from eft_engine import Engine, JsonSchema, Lark, Regex, RequestOutput, SamplingParams, SpeculationOptions
from eft_engine.errors import InvalidGrammarError, NonFiniteLogitsError
from eft_engine.text.grammar import GrammarState
from tests.toy import make_trio

NUM_SCHEMAS = 1000
DRAFTERS = ("none", "tuned", "prompt_lookup", "auto")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A random trio: it has no idea of JSON, so whatever comes out is the masks' work."""
    with make_trio("llama").engine(max_num_seqs=64, prefill_chunk_len=256, max_warm_prefixes=0) as engine:
        yield engine


def random_schema(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    """Objects, arrays, enumerations and bounded scalars."""
    kinds = ["string", "integer", "boolean", "enum", "null", "number", "const"]
    kind = chance.choice(kinds if depth >= 2 else [*kinds, "object", "object", "array", "array", "anyOf"])
    match kind:
        case "object":
            names = chance.sample(["id", "name", "größe", "tags", "a b", "x"], chance.randint(0, 3))
            return {
                "type": "object",
                "properties": {name: random_schema(chance, depth + 1) for name in names},
                "required": chance.sample(names, chance.randint(0, len(names))),
                "additionalProperties": False,
            }
        case "array":
            return {"type": "array", "items": random_schema(chance, depth + 1), "maxItems": chance.randint(0, 4)}
        case "anyOf":
            return {"anyOf": [random_schema(chance, depth + 1) for _ in range(2)]}
        case "enum":
            return {"enum": chance.sample(["red", "grün", "blue", 1, 2.5, None, True], chance.randint(1, 3))}
        case "const":
            return {"const": chance.choice(["yes", 7, False, {"a": [1]}])}
        case "string":
            return {
                "type": "string",
                **chance.choice([{}, {"maxLength": 5}, {"minLength": 2}, {"pattern": "^[a-f]{2,6}$"}]),
            }
        case "integer":
            return {"type": "integer", **chance.choice([{}, {"minimum": 3, "maximum": 17}, {"minimum": -2}])}
    return {"type": kind}


def generate(
    engine: Engine, schemas: list[dict[str, Any]], drafter: str, *, max_tokens: int, closes: bool = True
) -> list[RequestOutput]:
    """One greedy or sampled request per schema, all together."""
    sampling = [
        SamplingParams(
            temperature=0.0 if index % 2 else 1.0,
            seed=index,
            max_tokens=max_tokens,
            grammar=JsonSchema(json_schema=schema),
            close_within_budget=closes,
        )
        for index, schema in enumerate(schemas)
    ]
    prompts = [f"{index}" for index in range(len(schemas))]
    weights = [(index % 5) / 2 for index in range(len(schemas))]
    speculation = SpeculationOptions(drafter=drafter, adaptive=False, max_draft_tokens=4)
    return engine.generate(prompts, sampling=sampling, reward_weights=weights, speculation=speculation)


@pytest.mark.thorough
def test_random_schemas_are_obeyed_and_closed_or_refused(engine: Engine) -> None:
    chance = random.Random(0)
    schemas: list[dict[str, Any]] = []
    while len(schemas) < NUM_SCHEMAS:
        schema = random_schema(chance)
        try:
            engine._requests._grammars.compile(JsonSchema(json_schema=schema))
        except InvalidGrammarError:
            continue
        schemas.append(schema)
    outputs = generate(engine, schemas, "auto", max_tokens=90)
    too_long = []
    for schema, output in zip(schemas, outputs, strict=True):
        if output.finish_reason == "length":
            too_long.append(schema)
        else:
            jsonschema.validate(json.loads(output.text), schema)
    for schema in too_long:
        closing = engine._requests._grammars.closing(JsonSchema(json_schema=schema), max_tokens=90)
        assert closing.num_tokens_left is None, f"this holds an end and was not closed: {schema}"
    assert len(too_long) <= NUM_SCHEMAS // 100


def test_values_that_are_cut_are_never_told_as_whole(engine: Engine) -> None:
    chance = random.Random(2)
    schemas = [random_schema(chance) for _ in range(200)]
    outputs = generate(engine, schemas, "auto", max_tokens=40, closes=False)
    for schema, output in zip(schemas, outputs, strict=True):
        assert not output.closed_within_budget
        if output.finish_reason == "stop":
            jsonschema.validate(json.loads(output.text), schema)
    assert {output.finish_reason for output in outputs} == {"stop", "length"}


@pytest.mark.parametrize("closes", [True, False])
def test_text_is_the_same_whatever_drafts(engine: Engine, closes: bool) -> None:
    chance = random.Random(1)
    schemas = [random_schema(chance) for _ in range(60)]
    plain = [output.token_ids for output in generate(engine, schemas, "none", max_tokens=50, closes=closes)]
    for drafter in DRAFTERS[1:]:
        outputs = generate(engine, schemas, drafter, max_tokens=50, closes=closes)
        assert [output.token_ids for output in outputs] == plain, drafter


def test_forced_tokens_take_no_step_of_their_own(engine: Engine) -> None:
    grammar = Regex(pattern="the answer is [ab]")
    sampling = SamplingParams(temperature=0.0, grammar=grammar)
    output = engine.generate("?", sampling=sampling, speculation=SpeculationOptions(max_draft_tokens=16))
    assert output.text in ("the answer is a", "the answer is b")
    assert output.finish_reason == "stop"
    assert output.metrics.num_steps <= 2
    assert engine.generate("?", sampling=sampling, speculation=SpeculationOptions(drafter="none")).text == output.text


def test_lark_with_an_embedded_schema(engine: Engine) -> None:
    grammar = Lark(
        grammar='start: "<call>" obj "</call>"\nobj: %json {"type": "object", "properties": {}, "additionalProperties": false}'
    )
    output = engine.generate("?", sampling=SamplingParams(temperature=1.0, seed=1, max_tokens=40, grammar=grammar))
    assert re.fullmatch(r"<call>\{\s*\}</call>", output.text)  # the schema leaves the space inside the braces free


def test_budget_that_no_text_fits_into_ends_by_length(engine: Engine) -> None:
    grammar = JsonSchema(json_schema={"const": "a long constant that is not possible in five tokens"})
    output = engine.generate("?", sampling=SamplingParams(max_tokens=5, grammar=grammar))
    assert output.finish_reason == "length"
    assert len(output.token_ids) == 5


def test_grammar_that_cannot_be_enforced_is_refused_before_anything_runs(engine: Engine) -> None:
    before = engine.stats().num_failed
    grammar = JsonSchema(json_schema={"type": "array", "uniqueItems": True})
    with pytest.raises(InvalidGrammarError, match="uniqueItems"):
        engine.generate(["a", "b"], sampling=[SamplingParams(), SamplingParams(grammar=grammar)])
    assert engine.stats().num_failed == before


def test_grammar_and_logit_bias_that_leave_nothing_fail_that_request_alone(engine: Engine) -> None:
    impossible = SamplingParams(
        grammar=Regex(pattern="a"), logit_bias={engine.tokenizer.encode("a")[0]: -float("inf")}, temperature=0.0
    )
    fine = engine.stream("abc", sampling=SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True))
    with pytest.raises(NonFiniteLogitsError, match="grammar forbids"):
        engine.generate("?", sampling=impossible)
    assert sum(len(delta.token_ids) for delta in fine) == 30


def test_matcher_that_breaks_fails_its_request_and_no_other(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    original = GrammarState.commit

    def breaking(self: GrammarState, token_id: int) -> None:
        raise RuntimeError("the matcher broke")

    fine = engine.stream("abc", sampling=SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True))
    monkeypatch.setattr(GrammarState, "commit", breaking)
    with pytest.raises(Exception, match="the matcher broke"):
        engine.generate("?", sampling=SamplingParams(grammar=Regex(pattern="a+")))
    monkeypatch.setattr(GrammarState, "commit", original)
    assert sum(len(delta.token_ids) for delta in fine) == 30
    assert engine.generate("?", sampling=SamplingParams(grammar=Regex(pattern="abc"))).text == "abc"
