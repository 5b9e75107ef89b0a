"""Engines of families, made once per run and shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.families.adapters import ADAPTERS
from tests.families.cells import Desk
from tests.families.imitations import Family
from tests.families.stand_in import StandIn

Desks = Callable[[Family, str], Desk]


@pytest.fixture(scope="session")
def stand_ins() -> Iterator[Callable[[Family], StandIn]]:
    """The stand-in of a family."""
    made: dict[str, StandIn] = {}

    def find(family: Family) -> StandIn:
        if family.name not in made:
            made[family.name] = StandIn(family)
        return made[family.name]

    yield find
    for own in made.values():
        own.engine.close()


@pytest.fixture(scope="session")
def desks(stand_ins: Callable[[Family], StandIn]) -> Desks:
    """An adapter over a family's stand-in, by name."""
    made: dict[tuple[str, str], Desk] = {}

    def find(family: Family, adapter: str) -> Desk:
        key = (family.name, adapter)
        if key not in made:
            stand_in = stand_ins(family)
            made[key] = Desk(family, stand_in, ADAPTERS[adapter](stand_in))
        return made[key]

    return find
