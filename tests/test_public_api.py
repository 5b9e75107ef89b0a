"""The public names and signatures; a change here is a change for users."""

from __future__ import annotations

import inspect

import pytest

import eft_engine
from eft_engine import Engine

CALL = ["sampling", "reward_weights", "composition", "speculation", "prompt_options"]
SCORE = ["reward_weights", "composition", "prompt_options"]


def test_public_names_are_pinned() -> None:
    assert eft_engine.__all__ == [
        "ChatTemplate",
        "CompositionOptions",
        "EFTError",
        "Engine",
        "EngineConfig",
        "GenerationDelta",
        "LoadedPair",
        "MemberConfig",
        "PlainText",
        "PromptOptions",
        "RequestMetrics",
        "RequestOutput",
        "SamplingParams",
        "ScoreOutput",
        "SpeculationOptions",
        "TokenLogprobs",
        "TokenScore",
        "TunedPair",
        "Usage",
        "Verbatim",
        "errors",
        "load_preset",
    ]
    assert all(getattr(eft_engine, name) is not None for name in eft_engine.__all__)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("load", ["base", "pairs", "config"]),
        ("from_models", ["base", "tokenizer", "pairs", "config"]),
        ("generate", ["self", "prompt", *CALL]),
        ("agenerate", ["self", "prompt", *CALL]),
        ("stream", ["self", "prompt", *CALL]),
        ("astream", ["self", "prompt", *CALL]),
        ("score", ["self", "prompt", "completion", *SCORE]),
        ("ascore", ["self", "prompt", "completion", *SCORE]),
        ("close", ["self"]),
    ],
)
def test_engine_signatures_are_pinned(method: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(Engine, method)).parameters) == parameters


def test_unknown_attribute_raises() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        _ = eft_engine.Motor
