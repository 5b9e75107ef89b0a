"""Trios inside a real vLLM on a CPU: `make test-vllm` makes the environment and runs these files in it.

A start of vLLM takes most of a minute, so each file starts it once and asks it everything.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import logging

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    logging.set_verbosity_error()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Start vLLM in this process; it is stopped when the file is over."""
    from vllm import LLM

    started: list[Any] = []

    def make(base: Path, overrides: dict[str, Any], **options: Any) -> Any:
        stop_all(started)
        small = {"dtype": "float32", "max_num_seqs": 4, "max_num_batched_tokens": 128, "enforce_eager": True}
        started.append(LLM(model=str(base), hf_overrides=overrides, **small | options))
        return started[-1]

    yield make
    stop_all(started)


def stop_all(started: list[Any]) -> None:
    """Stop what runs: two engines at a time would share the machine's memory."""
    while started:
        started.pop().llm_engine.engine_core.shutdown()
