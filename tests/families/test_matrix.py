"""Every adapter with every family: the matrix of docs/families.md."""

from __future__ import annotations

import pytest

from tests.choice import thorough_but
from tests.families.adapters import ADAPTERS
from tests.families.cells import CELLS
from tests.families.conftest import Desks
from tests.families.imitations import FAMILIES, Family

OFTEN = ("deepseek-v3", "gemma3", "gpt-oss", "llama3.1", "mistral-v13", "phi4-mini", "qwen3")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", thorough_but((pytest.param(own, id=own.name) for own in FAMILIES), often=OFTEN))
def test_cell(family: Family, adapter: str, cell: str, desks: Desks) -> None:
    CELLS[cell](desks(family, adapter))
