"""The SmolLM2 trio in two forms: as the demo holds it (one network, adapter on and off), and as three separate networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, logging

from eft_engine import Engine, EngineConfig, LoadedPair, SpeculationOptions
from eft_engine.zoo.presets import PRESETS, ZOO, smollm2

QUESTIONS = [
    "Why is the sky blue?",
    "What does a heart do?",
    "How are rainbows made?",
    "What is a river delta?",
    "Why do leaves fall in autumn?",
    "What is the use of a compass?",
    "How does bread rise?",
    "What is a solar eclipse?",
]


Dtype = Annotated[
    str, typer.Option("--dtype", help="float32, or bfloat16 where the processor has products of it (avx512_bf16, amx).")
]

NO_DRAFTS = EngineConfig(speculation=SpeculationOptions(drafter="none"), max_warm_prefixes=0)
"""Plain decoding, every prompt read from the start."""


def shared_engine(config: EngineConfig | None = None) -> Engine:
    """The demo's trio: base, reference and tuned on one set of weights."""
    preset = PRESETS["smollm2-json"]
    return Engine.load(preset.base(), pairs=preset.pairs(), config=config)


@dataclass(frozen=True)
class SeparateTrio:
    """Three models with weights of their own: what a trio costs when nothing can be shared."""

    base: Any
    tuned: Any
    reference: Any
    tokenizer: Any

    def engine(self, config: EngineConfig | None = None) -> Engine:
        """An engine over the three."""
        pairs = {"json": LoadedPair(self.tuned, self.reference)}
        return Engine.from_models(self.base, tokenizer=self.tokenizer, pairs=pairs, config=config)


def separate_trio(dtype: str = "float32") -> SeparateTrio:
    """SmolLM2 three times; the adapter is merged into the tuned copy."""
    logging.disable_progress_bar()
    source = smollm2()

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            source.source,
            gguf_file=source.gguf_file,
            quantization_config=GgufConfig(dequantize=True),
            dtype=getattr(torch, dtype),
        ).eval()

    tuned = PeftModel.from_pretrained(load(), str(ZOO / "smollm2_json" / "adapter")).merge_and_unload().eval()
    tokenizer = AutoTokenizer.from_pretrained(source.source, gguf_file=source.gguf_file)
    return SeparateTrio(load(), tuned, load(), tokenizer)
