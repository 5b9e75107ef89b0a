"""OpenAI's JSON to the neutral form and back."""

from __future__ import annotations
