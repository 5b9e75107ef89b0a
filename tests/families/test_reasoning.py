"""Every adapter with every family that thinks."""

from __future__ import annotations

import pytest

from tests.families.adapters import ADAPTERS
from tests.families.cells_reasoning import REASONING_CELLS
from tests.families.conftest import Desks
from tests.families.imitations import FAMILIES, Family

THINKERS = [family for family in FAMILIES if family.thought is not None]


@pytest.mark.parametrize("cell", REASONING_CELLS)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", THINKERS, ids=lambda own: own.name)
def test_cell(family: Family, adapter: str, cell: str, desks: Desks) -> None:
    REASONING_CELLS[cell](desks(family, adapter))
