"""The README's blocks run, and show what they give."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import re
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from eft_engine import Engine, EngineConfig, SamplingParams, TunedPair
from tests.documents import python_blocks
from tests.toy import make_trio

PAGE = Path(__file__).parents[1] / "README.md"
README = PAGE.read_text(encoding="utf-8")
BLOCKS = python_blocks(PAGE)
PYTHON = [block for block in BLOCKS if "eft_integrations" not in block]
"""Blocks of adapters are pieces of the cookbook: tests/test_cookbook.py compares them."""
FIRST_OUTPUT = re.findall(r"```text\n(.*?)```", README, flags=re.DOTALL)[0]


def compiled(source: str) -> CodeType:
    return compile(source, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_there_are_blocks_to_run() -> None:
    assert len(PYTHON) == 4


@pytest.mark.smollm2
def test_first_block_prints_what_is_shown_below_it() -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compiled(PYTHON[0]), {})
    assert printed.getvalue() == FIRST_OUTPUT


def test_loading_block_asks_for_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(Engine, "load", lambda base, **arguments: asked.update(base=base, **arguments))
    exec(compiled(PYTHON[1]), {})
    assert asked["base"] == "org/large-base"
    assert asked["pairs"] == {
        "chat": TunedPair("./my-lora-adapter", "org/small-base"),
        "safe": TunedPair("org/small-safe", "org/small-base", 0.5),
    }
    assert asked["config"] == EngineConfig(dtype="bfloat16", device="auto", max_num_seqs=16)


def test_blocks_of_use_run() -> None:
    messages = [{"role": "user", "content": "Hello"}]
    with make_trio("llama").engine() as engine:
        names: dict[str, Any] = {"engine": engine, "SamplingParams": SamplingParams, "messages": messages}
        names |= {name: name for name in "abc"}
        for block in PYTHON[2:]:
            with contextlib.redirect_stdout(io.StringIO()):
                running = eval(compiled(block), names)
                if running is not None:
                    asyncio.run(running)
        assert names["out"].reward_weights == {"chat": 1.0}
        assert names["scores"].reward("chat")
