"""The one list of sampling fields."""

from __future__ import annotations

from eft_engine import SamplingParams

SAMPLING_FIELDS = frozenset(SamplingParams.model_fields) - {"grammar"}
"""Names that `ChatRequest.sampling` may hold."""
