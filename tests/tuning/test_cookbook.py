"""The cookbook's way from a chat file to a chain: `eft tune` in a process of its own, as a user runs it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from cookbook import renew
from eft_engine.zoo.presets import atlas
from tests.test_cookbook import HUB, SCRIPTS, TRAINS, stand_in
from tests.test_cookbook import asked as asked


def counts(lines: list[str]) -> Iterator[tuple[str, int, int]]:
    """By row, right answers and those with the behaviour."""
    for line in lines:
        found = re.match(r"(.+): (\d+) of 14 right, (\d+) with the behaviour", line)
        if found is not None:
            yield found[1], int(found[2]), int(found[3])


def test_script_that_tunes_counts_what_its_header_promises() -> None:
    promised = list(counts(renew.promised(SCRIPTS[TRAINS]) or []))
    printed = list(counts(renew.run(TRAINS)))
    assert [name for name, *_ in printed] == [name for name, *_ in promised]
    assert [name for name, *_ in printed] == ["tuned", "reference", "weight 0", "weight 1"]
    for (_, *now), (_, *then) in zip(printed, promised, strict=True):
        # Rounding differs among processors, and training carries it on: an answer or two may fall the other way.
        assert max(abs(a - b) for a, b in zip(now, then, strict=True)) <= 2


@pytest.mark.usefixtures("asked")
def test_its_variant_for_real_models_runs(asked: list[str]) -> None:
    assert renew.run(TRAINS, "--real")
    hub = {source for source in asked if source.startswith(HUB)}
    assert {stand_in(source) for source in hub} >= {atlas("base").source, atlas("reference").source}
