"""Wilson's interval against its defining equation."""

from __future__ import annotations

import math

import pytest

from eft_engine.evaluation.intervals import Z_95, Share, share_of


@pytest.mark.parametrize(("hits", "total"), [(1, 10), (5, 10), (37, 40), (250, 500)])
def test_bounds_are_where_the_score_test_turns(hits: int, total: int) -> None:
    share = Share(hits, total)
    for bound in share.interval:
        deviation = abs(share.value - bound) / math.sqrt(bound * (1 - bound) / total)
        assert deviation == pytest.approx(Z_95)


def test_all_and_none_keep_inside_zero_and_one() -> None:
    assert Share(0, 20).interval[0] == 0.0
    assert Share(20, 20).interval[1] == pytest.approx(1.0)
    assert 0.0 < Share(0, 20).interval[1] < 0.2


def test_share_counts_what_is_true() -> None:
    assert str(share_of([True, True, False, False])) == "50.0% [15.0%, 85.0%]"
    assert share_of([True]).as_json()["n"] == 1
