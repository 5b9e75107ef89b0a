"""The public names and signatures; a change here is a change for users."""

from __future__ import annotations

import inspect

import pytest

import eft_engine
from eft_engine import Engine, weights

PUBLIC_NAMES = [
    "Between",
    "CallDecision",
    "ChatTemplate",
    "CompositionOptions",
    "EFTError",
    "Engine",
    "EngineConfig",
    "EngineHealth",
    "EngineStats",
    "FirstTokens",
    "FromMarker",
    "Gate",
    "GenerationDelta",
    "InJsonStrings",
    "JsonSchema",
    "Lark",
    "LinearRamp",
    "LlamaCppOptions",
    "LoadedPair",
    "MemberConfig",
    "PlainText",
    "Progress",
    "PromptOptions",
    "PromptPair",
    "Proportional",
    "Regex",
    "RequestMetrics",
    "RequestOutput",
    "RewardWeights",
    "SamplingParams",
    "ScoreOutput",
    "SpeculationOptions",
    "Term",
    "TextToken",
    "Thought",
    "TokenIds",
    "TokenLogprobs",
    "TokenScore",
    "TunedPair",
    "Usage",
    "Verbatim",
    "Weight",
    "Without",
    "context_len_of",
    "control_texts",
    "errors",
    "find_preset",
    "inspect_trio",
    "load_preset",
    "neutralise",
]
ALIASES = {"RewardWeights", "Weight"}
"""Types that have a name only where they are written."""

CALL = ["sampling", "reward_weights", "composition", "speculation", "prompt_options", "request_id"]
SCORE = ["reward_weights", "composition", "prompt_options", "request_id", "num_top", "every_member"]


def test_public_names_are_pinned_and_sorted() -> None:
    assert eft_engine.__all__ == PUBLIC_NAMES
    assert sorted(PUBLIC_NAMES) == PUBLIC_NAMES


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_public_name_is_importable_and_is_what_it_says(name: str) -> None:
    namespace: dict[str, object] = {}
    exec(f"from eft_engine import {name} as found", namespace)
    found = namespace["found"]
    if name in ALIASES:
        assert found is getattr(weights, name)
    else:
        assert getattr(found, "__name__", "").removeprefix("eft_engine.") == name


@pytest.mark.parametrize(
    ("method", "positional", "keywords"),
    [
        ("load", ["base"], ["pairs", "config"]),
        ("follow", ["base"], ["pairs", "config"]),
        ("from_models", ["base"], ["tokenizer", "pairs", "config"]),
        ("generate", ["self", "prompt"], CALL),
        ("agenerate", ["self", "prompt"], CALL),
        ("stream", ["self", "prompt"], CALL),
        ("astream", ["self", "prompt"], CALL),
        ("score", ["self", "prompt", "completion"], SCORE),
        ("ascore", ["self", "prompt", "completion"], SCORE),
        ("health", ["self"], []),
        ("close", ["self"], []),
    ],
)
def test_engine_signatures_are_pinned(method: str, positional: list[str], keywords: list[str]) -> None:
    parameters = inspect.signature(getattr(Engine, method)).parameters
    assert list(parameters) == [*positional, *keywords]
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    assert [name for name, kind in kinds.items() if kind is inspect.Parameter.KEYWORD_ONLY] == keywords


def test_sync_and_async_methods_are_what_their_names_say() -> None:
    assert inspect.iscoroutinefunction(Engine.agenerate)
    assert inspect.iscoroutinefunction(Engine.ascore)
    plain = (Engine.generate, Engine.stream, Engine.astream, Engine.score)
    assert not any(inspect.iscoroutinefunction(method) for method in plain), "astream is iterated, not awaited"
    assert inspect.signature(Engine.astream).return_annotation == "AsyncGenerator[GenerationDelta]"


def test_unknown_attribute_raises() -> None:
    with pytest.raises(AttributeError, match="module 'eft_engine' has no attribute 'Motor'"):
        _ = eft_engine.Motor
