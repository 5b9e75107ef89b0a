"""Toy trios in llama.cpp: the models of `toy` written as GGUF files, run by the second runtime, judged by the same loop."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eft_engine import Engine, EngineConfig, LlamaCppOptions, MemberConfig, TunedPair
from tests.gguf_files import GgufTrio, make_gguf_trio
from tests.toy import ToyTrio

EXACT = LlamaCppOptions(cache_type_k="f32", cache_type_v="f32", n_threads=1, n_ctx=256, flash_attention=False)
"""Keys and values as exact as in the judge; little room, so that it has to grow."""


@dataclass(frozen=True)
class LlamaCppTrio(ToyTrio):
    """A toy trio whose engine is llama.cpp."""

    files: GgufTrio

    def engine(self, **config: object) -> Engine:
        """An engine over the files with one pair, `chat`."""
        return Engine.load(
            MemberConfig(source=str(self.files.base), runtime="llama.cpp"),
            pairs={
                "chat": TunedPair(
                    tuned=MemberConfig(source=str(self.files.tuned), runtime="llama.cpp"),
                    reference=MemberConfig(source=str(self.files.reference), runtime="llama.cpp"),
                )
            },
            config=EngineConfig.model_validate({"llama_cpp": EXACT, **config}),
        )


def make_llama_cpp_trio(architecture: str, *, context_len: int = 256, changes: Mapping[str, Any] = {}) -> LlamaCppTrio:
    """As `toy.make_trio`; the files are removed when the process ends, since llama.cpp maps them."""
    folder = Path(tempfile.mkdtemp(prefix="eft-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    files = make_gguf_trio(folder, architecture, context_len=context_len, changes=changes)
    models = files.models
    return LlamaCppTrio(models.base, models.tuned, models.reference, models.tokenizer, files)
