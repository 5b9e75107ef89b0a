"""Every adapter with every family: the matrix of docs/families.md."""

from __future__ import annotations

import pytest

from tests.families.adapters import ADAPTERS
from tests.families.cells import CELLS
from tests.families.conftest import Desks
from tests.families.imitations import FAMILIES, Family


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda own: own.name)
def test_cell(family: Family, adapter: str, cell: str, desks: Desks) -> None:
    CELLS[cell](desks(family, adapter))
