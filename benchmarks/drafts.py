"""How engines draft in benchmarks, where they do not choose."""

from __future__ import annotations

from eft_engine import SpeculationOptions

NO_DRAFTS = SpeculationOptions(drafter="none")


def fixed_drafts(number: int) -> SpeculationOptions:
    """So many drafts of the tuned model in every step."""
    return SpeculationOptions(drafter="tuned", max_draft_tokens=number, adaptive=False, min_confidence=0.0)
