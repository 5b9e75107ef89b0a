"""Function calling and agents by a real model; `python -m benchmarks.agents --help` tells more."""

from __future__ import annotations
