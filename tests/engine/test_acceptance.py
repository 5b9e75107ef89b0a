"""What is believed about drafts, and what later requests learn from earlier ones."""

from __future__ import annotations

import pytest

from eft_engine.engine.acceptance import Acceptance, AcceptanceByWeights


def test_recent_verifications_count_most() -> None:
    acceptance = Acceptance(prior=0.5)
    for _ in range(50):
        acceptance.note(3, 3)
    assert acceptance.rate == pytest.approx(1.0, abs=0.03)
    for _ in range(50):
        acceptance.note(3, 0)
    assert acceptance.rate == pytest.approx(0.0, abs=0.03)


def test_a_request_starts_from_what_others_with_its_weights_learned() -> None:
    known = AcceptanceByWeights(prior=0.7)
    first = known.start([1.0])
    assert first.rate == pytest.approx(0.7)
    assert not first.is_known
    for _ in range(16):
        first.note(2, 2)
    assert first.is_known
    again, other = known.start([1.0]), known.start([0.2])
    assert again.rate == pytest.approx(first.rate, abs=0.02)
    assert again.is_known
    assert other.rate == pytest.approx(0.7)
    assert not other.is_known


def test_only_so_many_weights_are_remembered() -> None:
    known = AcceptanceByWeights(prior=0.7)
    known.start([0.0]).note(1, 0)
    for number in range(1, AcceptanceByWeights.MAX_KNOWN + 1):
        known.start([float(number)])
    assert known.start([0.0]).rate == pytest.approx(0.7)
