"""Options refuse what cannot be meant, and say what was wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from eft_engine import (
    Between,
    CallDecision,
    ChatTemplate,
    CompositionOptions,
    EngineConfig,
    FirstTokens,
    FromMarker,
    Gate,
    InJsonStrings,
    LinearRamp,
    LlamaCppOptions,
    MemberConfig,
    PlainText,
    PromptOptions,
    PromptPair,
    Proportional,
    Regex,
    SamplingParams,
    SpeculationOptions,
    Term,
    TokenIds,
    TunedPair,
    Verbatim,
    Without,
)
from eft_engine.call_decision import Thought
from eft_engine.config import Options
from eft_engine.errors import EFTError, InvalidOptionError

NAN, INF = math.nan, math.inf
Range = tuple[list[Any], list[Any]]

NESTED = {"kind": "first_tokens", "num_tokens": 3, "weight": {"kind": "gate", "by": "kl", "above": 0.1}, "then": 0.5}
WEIGHTS = [-1.0, 0, 0.5, 20.0, LinearRamp(), NESTED]
NO_WEIGHTS = [NAN, INF, -INF, "much", None, {"kind": "constant"}, {"start": 1.0}, {"kind": "gate", "by": "kl"}]
SIDES = ["text", {"system": "Be brief."}, {"user": None}, Without(texts=["a"]), {"texts": ["a"]}, TokenIds(ids=[1, 2])]
SIDES += [[{"role": "user", "content": "hi"}]]
NO_SIDES = [3, {}, {"system": 3}, 1.5, {"texts": [""]}]

# Per option: values that are taken (the ends of its range among them), values that are refused.
RANGES: dict[type[Options], dict[str, Range]] = {
    SamplingParams: {
        "max_tokens": ([1, 10**6], [0, -1, 1.5, "many", None]),
        "temperature": ([0.0, 1e-300, 100.0], [-0.1, NAN, INF, None]),
        "top_k": ([0, 1, 10**6], [-1, 0.5]),
        "top_p": ([1e-9, 1.0], [0.0, 1.1, NAN]),
        "min_p": ([0.0, 1.0], [-0.1, 1.1, NAN]),
        "repetition_penalty": ([0.01, 1.0, 5.0], [0.0, -1.0, NAN, INF]),
        "presence_penalty": ([-2.0, 2.0], [-2.1, 2.1, NAN]),
        "frequency_penalty": ([-2.0, 2.0], [-2.1, 2.1, NAN]),
        "logit_bias": ([{}, {0: -INF}, {7: 100.0}], [{-1: 1.0}, {1: NAN}, {1: INF}, {1: 1e39}, {"a": 1.0}, 3]),
        "seed": ([None, 0, 2**64 - 1], [-1, 2**64, 0.5]),
        "stop": ([None, "a", [], ["a", "b"], ("a",)], ["", ["a", ""], [3], 3]),
        "stop_token_ids": ([[], [3], (3, 4)], [3, ["a"]]),
        "ignore_eos": ([True, False], ["perhaps", None]),
        "skip_special_tokens": ([True, False], ["perhaps", None]),
        "grammar": (
            [None, {"kind": "regex", "pattern": "a"}, {"kind": "json_schema", "json_schema": {}}],
            [{"kind": "regex", "pattern": ""}, {"kind": "lark"}, {"kind": "ebnf"}, {"json_schema": {}}, "a+"],
        ),
        "close_within_budget": ([True, False], ["perhaps", None]),
        "logprobs": ([None, 0, 100], [-1, 101]),
    },
    CompositionOptions: {
        "amplification": ([-1.0, 0.0, 2.5], [NAN, INF, "more"]),
        "conservative_top_p": ([None, 1e-9, 1.0], [0.0, 1.1, NAN]),
        "min_plausibility": ([0.0, 0.1, 1.0], [-0.1, 1.1, NAN, None]),
        "tuned_plausibility": ([0.0, 0.1, 1.0], [-0.1, 1.1, NAN, None]),
        "prompt_pairs": (
            [
                {},
                {"safe": PromptPair(negative="a")},
                {"rag": {"negative": {"texts": ["a"]}, "weight": {"kind": "gate", "by": "kl", "above": 1}}},
            ],
            [
                {"safe": {}},
                {"safe": 1.0},
                {"safe": {"positive": 3}},
                {f"p{n}": {"positive": "a"} for n in range(17)},
                None,
            ],
        ),
        "call_decision": ([None, {"openings": ["<call>"]}], [{"openings": []}, {"openings": [""]}, {}, 0.0]),
        "member": ([None, "base", "chat.tuned"], [3]),
    },
    SpeculationOptions: {
        "drafter": (["auto", "tuned", "prompt_lookup", "none"], ["oracle", None]),
        "max_draft_tokens": ([1, 64], [0, 65]),
        "adaptive": ([True, False], ["perhaps"]),
        "min_confidence": ([0.0, 1.0], [-0.1, 1.1, NAN]),
        "min_ngram_size": ([1, 6], [0]),
        "max_ngram_size": ([3, 20], [2, 0]),
    },
    LlamaCppOptions: {
        "n_gpu_layers": ([None, -1, 0, 99], [-2, "all"]),
        "n_threads": ([None, 1, 64], [0, -1]),
        "n_threads_batch": ([None, 1, 64], [0, -1]),
        "n_ctx": ([256, 2048, 100_000], [255, None]),
        "n_ubatch": ([32, 4096], [31, 4097, None]),
        "cache_type_k": (["f32", "f16", "bf16", "q8_0", "q4_0"], ["float16", "q4_K", None]),
        "cache_type_v": (["f32", "f16", "bf16", "q8_0", "q4_0"], ["float16", "q4_K", None]),
        "flash_attention": ([None, True, False], ["perhaps"]),
        "use_mmap": ([True, False], ["perhaps", None]),
        "repack": ([True, False], ["perhaps", None]),
        "check_tensors": ([True, False], ["perhaps", None]),
    },
    EngineConfig: {
        "dtype": (["auto", "float32", "bfloat16", "float16"], ["int3", "half", "torch.float32", None]),
        "quantization": (["none", "int8", "int4"], ["int3", None]),
        "device": (["auto", "cpu", "cuda:1"], [None, 0]),
        "runtime": (["auto", "torch", "llama.cpp"], ["llama_cpp", None]),
        "llama_cpp": ([LlamaCppOptions(), {"n_threads": 2}], [{"n_threads": 0}, None, "fast"]),
        "max_num_seqs": ([1, 1000], [0]),
        "max_context_len": ([None, 2], [1]),
        "prefill_chunk_len": ([8, 4096], [7]),
        "max_warm_prefixes": ([0, 16], [-1]),
        "max_kv_cache_bytes": ([None, 1, 2**40, "auto"], [0, -1, "all"]),
        "max_queued_requests": ([None, 1], [0]),
        "mismatched_tokens": (["refuse", "mask"], ["ignore"]),
        "tuned_only_tokens": (["refuse", "keep"], ["mask"]),
        "speculation": ([SpeculationOptions(), {"drafter": "none"}], [{"drafter": "oracle"}, None, "fast"]),
        "deterministic": ([True, False], ["perhaps", None]),
        "draft_history_tokens": ([0, 2**20], [-1, None]),
        "draft_quantization": ([None, "none", "int8", "int4"], ["int3", 4]),
        "cuda_graphs": ([True, False], ["perhaps", None]),
        "cpu_kernels": ([None, True, False], ["perhaps"]),
        "attention": (["sdpa", "flash"], ["eager", None, True]),
        "tensor_parallel_timeout_s": ([0.5, 60, 3600.0], [0, -1.0, float("inf"), float("nan"), None]),
        "self_check": ([True, False], ["perhaps"]),
        "show_progress": ([None, True, False], ["perhaps"]),
    },
    MemberConfig: {
        "source": (["folder"], ["", None, 3]),
        "adapter": ([None, "folder"], [3]),
        "merge": ([None, True, False], [3, "always"]),
        "gguf_file": ([None, "model.gguf"], [3]),
        "tokenizer": ([None, "folder"], [3]),
        "revision": ([None, "main"], [3]),
        "dtype": ([None, "auto", "float32", "bfloat16", "float16"], ["int3", "half", 16]),
        "device": ([None, "cpu"], [0]),
        "device_map": ([None, "auto", {"": 0}], [3]),
        "quantization_config": ([None, ...], []),
        "quantization": ([None, "none", "int8", "int4"], ["int3", 4]),
        "trust_remote_code": ([True, False], ["perhaps"]),
        "runtime": ([None, "auto", "torch", "llama.cpp"], ["vllm"]),
        "llama_cpp": ([None, LlamaCppOptions(n_gpu_layers=-1), {"n_ctx": 4096}], [{"n_ctx": 1}, 3]),
        "tensor_parallel": ([True, False], ["perhaps", None]),
    },
    TunedPair: {
        "tuned": (["a", MemberConfig(source="a"), {"source": "a"}], ["", None, 3, {"source": ""}]),
        "reference": (["a", MemberConfig(source="a"), {"source": "a"}], ["", None, 3, {"place": "a"}]),
        "weight": (WEIGHTS, NO_WEIGHTS),
    },
    Term: {
        "model": (["a", MemberConfig(source="a"), {"source": "a"}], ["", None, 3, {"source": ""}]),
        "weight": (WEIGHTS, NO_WEIGHTS),
    },
    LinearRamp: {
        "kind": (["linear_ramp"], ["gate", None]),
        "start": ([-1.0, 0, 20.0], [NAN, INF, "much", None]),
        "end": ([-1.0, 0, 20.0], [NAN, INF, "much", None]),
        "num_tokens": ([1, 10**6], [0, 1.5, None]),
    },
    FirstTokens: {
        "kind": (["first_tokens"], ["gate", None]),
        "num_tokens": ([1, 10**6], [0, 1.5, None]),
        "weight": (WEIGHTS, NO_WEIGHTS),
        "then": (WEIGHTS, NO_WEIGHTS),
    },
    FromMarker: {
        "kind": (["from_marker"], ["gate", None]),
        "marker": (["a", "a" * 200], ["", "a" * 201, None]),
        "weight": (WEIGHTS, NO_WEIGHTS),
        "before": (WEIGHTS, NO_WEIGHTS),
    },
    Between: {
        "kind": (["between"], ["gate", None]),
        "opening": (["a", "a" * 200], ["", "a" * 201, None]),
        "closing": (["a", "a" * 200], ["", "a" * 201, None]),
        "weight": (WEIGHTS, NO_WEIGHTS),
        "outside": (WEIGHTS, NO_WEIGHTS),
        "starts_inside": ([True, False], ["perhaps", None]),
    },
    InJsonStrings: {
        "kind": (["in_json_strings"], ["gate", None]),
        "weight": (WEIGHTS, NO_WEIGHTS),
        "outside": (WEIGHTS, NO_WEIGHTS),
        "keys": ([True, False], ["perhaps", None]),
    },
    Gate: {
        "kind": (["gate"], ["linear_ramp", None]),
        "by": (["base_entropy", "base_confidence", "kl", "total_variation", "jensen_shannon"], ["entropy", None]),
        "above": ([-1.0, 0, 0.4], [NAN, INF, "much"]),
        "below": ([None, 0.6, 20], [NAN, INF, "much"]),
        "weight": ([-1.0, 0, 20.0], [NAN, INF, "much", None, {"kind": "linear_ramp"}]),
        "otherwise": ([-1.0, 0, 20.0], [NAN, INF, "much", None, {"kind": "linear_ramp"}]),
    },
    Proportional: {
        "kind": (["proportional"], ["linear_ramp", None]),
        "to": (["base_entropy", "base_confidence", "kl", "total_variation", "jensen_shannon"], ["entropy", None]),
        "factor": ([-1.0, 0, 20.0], [NAN, INF, "much", None]),
        "most": ([0.1, 20], [0.0, -1.0, NAN, INF, None]),
    },
    Without: {"texts": ([["a"], ("a", "b")], [[], [""], ["a", " "], None, 3])},
    PromptPair: {
        "positive": (SIDES, NO_SIDES),
        "negative": ([None, *SIDES], NO_SIDES),
        "model": (["base", "chat", "chat.reference"], ["", None, 3]),
        "weight": (WEIGHTS, NO_WEIGHTS),
    },
    Thought: {
        "opening": (["<think>"], ["", None]),
        "closing": (["</think>"], ["", None]),
        "is_open": ([True, False], ["perhaps", None]),
    },
    CallDecision: {
        "weights": (
            [*WEIGHTS, {"chat": 0.5}, {"chat": LinearRamp()}],
            [NAN, INF, "much", None, {"kind": "constant"}, {"chat": NAN}, {"chat": {}}],
        ),
        "openings": ([["<call>"], ("a", "b")], [[], [""], ["a", ""], None]),
        "num_tokens": ([1, 10**6], [0, 1.5, None]),
        "otherwise": ([None, Regex(pattern="a"), {"kind": "regex", "pattern": "a"}], [{"kind": "regex"}, "a+"]),
        "thought": ([None, {"opening": "<t>", "closing": "</t>"}], [{"opening": "<t>"}, "<t>"]),
    },
    ChatTemplate: {
        "of": (["base", "tuned", "reference"], ["other", None]),
        "jinja": ([None, "{{ messages }}"], [3]),
    },
    PlainText: {
        "template": (
            ["{content}", "{role}: {content!r}\n", "{{{content}}}"],
            ["no field", "{role}", "{{content}}", "{content} {name}", "{content} {}", "{content", "{content.nothing}"],
        ),
        "closing": (["", "Answer:"], [None, 3]),
        "role_names": ([{}, {"user": "Q"}], [None, {"user": 3}]),
    },
    Verbatim: {"text": (["a"], ["", None])},
    PromptOptions: {
        "chat_template": ([ChatTemplate(of="base"), {"of": "base"}], [{"of": "other"}, PlainText(), None]),
        "base": ([None, ChatTemplate(), PlainText(), Verbatim(text="a")], [3, "text"]),
        "tuned": ([None, ChatTemplate(), PlainText(), Verbatim(text="a")], [3, "text"]),
        "reference": ([None, ChatTemplate(), PlainText(), Verbatim(text="a")], [3, "text"]),
        "add_special_tokens": ([True, False], ["perhaps"]),
        "control_tokens": (["neutralise", "parse"], ["neutralize"]),
        "template_variables": ([{}, {"enable_thinking": False}], [None, {3: 1}]),
    },
}
REQUIRED: dict[type[Options], dict[str, Any]] = {
    MemberConfig: {"source": "a"},
    TunedPair: {"tuned": "a", "reference": "b"},
    Verbatim: {"text": "a"},
    Term: {"model": "a"},
    FirstTokens: {"num_tokens": 1},
    FromMarker: {"marker": "a"},
    Between: {"opening": "a", "closing": "b"},
    Gate: {"by": "kl", "above": 0.5},
    Without: {"texts": ["a"]},
    PromptPair: {"positive": "a"},
    Thought: {"opening": "a", "closing": "b"},
    CallDecision: {"openings": ["a"]},
}


def cases(*, taken: bool) -> list[Any]:
    return [
        pytest.param(options, name, value, id=f"{options.__name__}.{name}={value!r}"[:60])
        for options, fields in RANGES.items()
        for name, (good, bad) in fields.items()
        for value in (good if taken else bad)
    ]


def make(options: type[Options], name: str, value: Any) -> Options:
    return options(**(REQUIRED.get(options, {}) | {name: value}))


@pytest.mark.parametrize("options", RANGES, ids=lambda options: options.__name__)
def test_table_of_ranges_names_every_option(options: type[Options]) -> None:
    assert list(RANGES[options]) == list(options.model_fields)


@pytest.mark.parametrize(("options", "name", "value"), cases(taken=True))
def test_value_in_range_is_taken(options: type[Options], name: str, value: Any) -> None:
    again = make(options, name, value).model_dump()
    assert options(**again).model_dump() == again


@pytest.mark.parametrize(("options", "name", "value"), cases(taken=False))
def test_value_out_of_range_is_refused_by_name(options: type[Options], name: str, value: Any) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        make(options, name, value)
    assert caught.value.option is not None
    assert caught.value.option.split(".")[0] == name
    assert str(caught.value).startswith(f"{options.__name__}.{name}")
    assert isinstance(caught.value, EFTError)


def test_refused_value_is_in_message_and_field() -> None:
    with pytest.raises(InvalidOptionError, match=r"^SamplingParams.max_tokens: .* equal to 1; got -4$") as caught:
        SamplingParams(max_tokens=-4)
    assert (caught.value.option, caught.value.value) == ("max_tokens", -4)


@pytest.mark.parametrize(
    ("options", "misspelt", "meant"),
    [
        (SamplingParams, "temprature", "temperature"),
        (SamplingParams, "max_new_tokens", "max_tokens"),
        (SamplingParams, "topp", "top_p"),
        (SamplingParams, "stops", "stop"),
        (CompositionOptions, "amplify", "amplification"),
        (SpeculationOptions, "num_draft_tokens", "max_draft_tokens"),
        (EngineConfig, "max_seqs", "max_num_seqs"),
        (MemberConfig, "sorce", "source"),
        (TunedPair, "wieght", "weight"),
        (PromptOptions, "template_vars", "template_variables"),
    ],
)
def test_misspelt_option_suggests_the_right_one(options: type[Options], misspelt: str, meant: str) -> None:
    with pytest.raises(
        InvalidOptionError, match=rf"has no option '{misspelt}' \(value 1\); did you mean '{meant}'\?"
    ) as caught:
        make(options, misspelt, 1)
    assert caught.value.option == misspelt


def test_unknown_option_lists_those_there_are() -> None:
    with pytest.raises(InvalidOptionError, match="known options: amplification, conservative_top_p"):
        CompositionOptions(xyz=1)


def test_error_of_a_nested_option_names_both_levels() -> None:
    with pytest.raises(InvalidOptionError, match=r"EngineConfig\.speculation: SpeculationOptions\.drafter: .*'oracle'"):
        EngineConfig(speculation={"drafter": "oracle"})


@pytest.mark.parametrize(
    ("bounds", "meant"),
    [({}, "needs a bound"), ({"above": 2.0, "below": 1.0}, "never open"), ({"above": 1.0, "below": 1.0}, "never open")],
)
def test_a_gate_can_open(bounds: dict[str, float], meant: str) -> None:
    with pytest.raises(InvalidOptionError, match=meant):
        Gate(by="kl", **bounds)


def test_a_prompt_pair_has_a_side() -> None:
    with pytest.raises(InvalidOptionError, match=r"needs a side: positive=\.\.\., negative=\.\.\., or both"):
        PromptPair(weight=2.0)


def test_a_term_is_its_model_without_a_reference() -> None:
    term = Term("a", 0.5)
    assert term == Term(model=MemberConfig(source="a"), weight=0.5)
    assert (term.tuned, term.reference) == (term.model, None)
    with pytest.raises(InvalidOptionError, match="Term has no option 'reference'"):
        Term("a", reference="b")


def test_ngram_sizes_are_ordered_whichever_of_them_is_given() -> None:
    with pytest.raises(InvalidOptionError, match="must not be smaller than min_ngram_size; got 3"):
        SpeculationOptions(min_ngram_size=4, max_ngram_size=3)
    with pytest.raises(InvalidOptionError, match="must not be smaller than min_ngram_size; got 6"):
        SpeculationOptions(min_ngram_size=8)
    assert SpeculationOptions(min_ngram_size=8, max_ngram_size=8).max_ngram_size == 8


def test_pair_takes_strings_and_member_configs() -> None:
    pair = TunedPair(tuned="a", reference=MemberConfig(source="b", dtype="bfloat16"), weight=-0.5)
    assert pair.tuned == MemberConfig(source="a")
    assert (pair.reference.source, pair.reference.dtype, pair.weight) == ("b", "bfloat16", -0.5)
    assert TunedPair("a", "b") == TunedPair(tuned="a", reference="b", weight=1.0)


@pytest.mark.parametrize(("given", "kept"), [("xy", ("xy",)), (["x", "y"], ("x", "y")), (("x",), ("x",)), (None, ())])
def test_stop_is_a_string_or_a_list(given: Any, kept: tuple[str, ...]) -> None:
    assert SamplingParams(stop=given).stop == kept


@pytest.mark.parametrize("options", RANGES, ids=lambda options: options.__name__)
def test_options_cannot_be_changed(options: type[Options]) -> None:
    made = options(**REQUIRED.get(options, {}))
    before = made.model_dump()
    for name in options.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(made, name, getattr(made, name))
    assert made.model_dump() == before


def test_options_keep_no_hold_of_what_they_were_given() -> None:
    bias, stop = {3: 1.0}, ["a"]
    params = SamplingParams(logit_bias=bias, stop=stop)
    bias[4] = 2.0
    stop.append("b")
    assert (params.logit_bias, params.stop) == ({3: 1.0}, ("a",))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.1 + 0.2, top_p=1 / 3, seed=2**64 - 1, logprobs=0),
        SamplingParams(stop=["a", "\u2028\n"], stop_token_ids=[1, 2], logit_bias={3: -INF, 4: 1.5}),
    ],
)
def test_sampling_parameters_survive_json(params: SamplingParams) -> None:
    assert SamplingParams.model_validate_json(params.model_dump_json()) == params


def test_prompt_options_survive_json_with_their_kinds_of_rendering() -> None:
    options = PromptOptions(base=PlainText(closing="A:"), tuned=ChatTemplate(of="base"), reference=Verbatim(text="x"))
    assert PromptOptions.model_validate_json(options.model_dump_json()) == options
