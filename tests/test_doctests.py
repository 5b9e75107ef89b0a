"""Examples in docstrings give what they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("eft_engine", "eft_integrations", "eft_tuning")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8") and path.parts[-2] != "vllm"  # is not installed here
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("package", ["text", "decoding"])
def test_text_and_mathematics_are_shown_by_example(package: str) -> None:
    shown = [name for name in MODULES if name.startswith(f"eft_engine.{package}.")]
    assert len(shown) >= 2
