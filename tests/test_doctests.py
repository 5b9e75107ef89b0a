"""Examples in docstrings give what they show."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "eft_engine.decoding.composition",
    "eft_engine.decoding.prompt_lookup",
    "eft_engine.decoding.sampling",
    "eft_engine.engine.acceptance",
    "eft_engine.engine.prefix_cache",
    "eft_engine.text.detokenizer",
    "eft_engine.text.prompt",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
