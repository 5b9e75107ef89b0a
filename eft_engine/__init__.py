"""Emulated fine-tuning as a decoding engine: a large base model with the behaviour of small tuned ones.

    from eft_engine import Engine, TunedPair
    engine = Engine.load("base", pairs={"chat": TunedPair(tuned="small-tuned", reference="small")})
    print(engine.generate("Why is the sky blue?").text)

Options, outputs and errors import without torch; the engine itself is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eft_engine import errors
from eft_engine.config import (
    CallDecision,
    ChatTemplate,
    CompositionOptions,
    EngineConfig,
    JsonSchema,
    Lark,
    LlamaCppOptions,
    MemberConfig,
    PlainText,
    PromptOptions,
    PromptPair,
    Regex,
    SamplingParams,
    SpeculationOptions,
    Term,
    Thought,
    TokenIds,
    TunedPair,
    Verbatim,
    Without,
)
from eft_engine.errors import EFTError
from eft_engine.outputs import (
    EngineHealth,
    EngineStats,
    GenerationDelta,
    Progress,
    RequestMetrics,
    RequestOutput,
    ScoreOutput,
    TextToken,
    TokenLogprobs,
    TokenScore,
    Usage,
)
from eft_engine.weights import (
    Between,
    FirstTokens,
    FromMarker,
    Gate,
    InJsonStrings,
    LinearRamp,
    Proportional,
    RewardWeights,
    Weight,
)

if TYPE_CHECKING:
    from eft_engine.engine.engine import Engine, LoadedPair
    from eft_engine.models.context import context_len_of
    from eft_engine.models.planning import inspect_trio
    from eft_engine.text.control import control_texts, neutralise
    from eft_engine.zoo.presets import find_preset, load_preset

__version__ = "0.1.0"

__all__ = [
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


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use (PEP 562)."""
    if name in ("Engine", "LoadedPair"):
        from eft_engine.engine import engine

        return getattr(engine, name)
    if name == "context_len_of":
        from eft_engine.models.context import context_len_of

        return context_len_of
    if name == "inspect_trio":
        from eft_engine.models.planning import inspect_trio

        return inspect_trio
    if name in ("control_texts", "neutralise"):
        from eft_engine.text import control

        return getattr(control, name)
    if name in ("find_preset", "load_preset"):
        from eft_engine.zoo import presets

        return getattr(presets, name)
    raise AttributeError(f"module 'eft_engine' has no attribute {name!r}")
