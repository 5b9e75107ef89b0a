"""Options refuse what cannot be meant, and say what was wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest

from eft_engine import CompositionOptions, EngineConfig, MemberConfig, PlainText, SamplingParams, TunedPair
from eft_engine.config import SpeculationOptions
from eft_engine.errors import EFTError, InvalidOptionError


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (SamplingParams, {"max_tokens": -1}),
        (SamplingParams, {"max_tokens": 0}),
        (SamplingParams, {"temperature": -0.1}),
        (SamplingParams, {"temperature": math.nan}),
        (SamplingParams, {"temperature": math.inf}),
        (SamplingParams, {"top_p": 0.0}),
        (SamplingParams, {"top_p": 1.1}),
        (SamplingParams, {"top_k": -1}),
        (SamplingParams, {"min_p": 2.0}),
        (SamplingParams, {"repetition_penalty": 0.0}),
        (SamplingParams, {"presence_penalty": 3.0}),
        (SamplingParams, {"frequency_penalty": -3.0}),
        (SamplingParams, {"seed": -1}),
        (SamplingParams, {"seed": 2**64}),
        (SamplingParams, {"stop": ""}),
        (SamplingParams, {"stop": ["a", ""]}),
        (SamplingParams, {"logprobs": -1}),
        (SamplingParams, {"logit_bias": {-1: 1.0}}),
        (SamplingParams, {"logit_bias": {1: math.nan}}),
        (SamplingParams, {"logit_bias": {1: math.inf}}),
        (CompositionOptions, {"amplification": math.nan}),
        (CompositionOptions, {"conservative_top_p": 0.0}),
        (EngineConfig, {"dtype": "int3"}),
        (EngineConfig, {"max_num_seqs": 0}),
        (EngineConfig, {"mismatched_tokens": "ignore"}),
        (MemberConfig, {"source": "x", "dtype": "half"}),
        (MemberConfig, {"source": ""}),
        (PlainText, {"template": "no field"}),
        (SpeculationOptions, {"min_ngram_size": 4, "max_ngram_size": 3}),
        (SpeculationOptions, {"drafter": "oracle"}),
    ],
)
def test_value_out_of_range_is_refused_by_name(options: type[Any], values: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        options(**values)
    name = list(values)[-1]
    assert caught.value.option is not None
    assert caught.value.option.startswith(name)
    assert f"{options.__name__}.{name}" in str(caught.value)
    assert isinstance(caught.value, EFTError)
    assert isinstance(caught.value, ValueError)


def test_misspelt_option_suggests_the_right_one() -> None:
    with pytest.raises(InvalidOptionError, match=r"no option 'temprature' \(value 1\); did you mean 'temperature'\?"):
        SamplingParams(temprature=1)


def test_unknown_option_lists_those_there_are() -> None:
    with pytest.raises(InvalidOptionError, match="known options: amplification, conservative_top_p"):
        CompositionOptions(xyz=1)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, "much"])
def test_pair_weight_must_be_finite(weight: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"TunedPair\.weight"):
        TunedPair("a", "b", weight)


def test_pair_takes_strings_and_member_configs() -> None:
    pair = TunedPair(tuned="a", reference=MemberConfig(source="b", dtype="bfloat16"), weight=-0.5)
    assert (pair.tuned.source, pair.reference.source, pair.reference.dtype, pair.weight) == ("a", "b", "bfloat16", -0.5)


def test_pair_refuses_unknown_keywords() -> None:
    with pytest.raises(InvalidOptionError, match="did you mean 'weight'"):
        TunedPair("a", "b", wieght=1.0)


@pytest.mark.parametrize(("given", "kept"), [("x", ("x",)), (["x", "y"], ("x", "y")), (None, ())])
def test_stop_is_a_string_or_a_list(given: Any, kept: tuple[str, ...]) -> None:
    assert SamplingParams(stop=given).stop == kept


def test_options_cannot_be_changed() -> None:
    params = SamplingParams()
    with pytest.raises(ValueError, match="frozen"):
        params.temperature = 0.0


def test_options_survive_json() -> None:
    params = SamplingParams(temperature=0.3, stop=["a"], logit_bias={3: -math.inf, 4: 1.5}, seed=2**64 - 1)
    again = SamplingParams(**params.model_dump())
    assert again == params
