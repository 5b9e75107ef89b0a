"""How many bytes all key/value caches may have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from eft_engine.models.devices import available_memory, full_name
from eft_engine.models.network import Network

SHARE = 0.8
"""Of the memory that is free once everything is loaded, what caches may have; the rest is for the work of the largest step."""


def cache_budget(wanted: int | Literal["auto"] | None, networks: Sequence[Network]) -> int | None:
    """What `EngineConfig.max_kv_cache_bytes` comes to, for networks that are loaded; None: there is no bound."""
    if wanted != "auto":
        return wanted
    devices = dict.fromkeys(full_name(str(network.device)) for network in networks)
    return int(SHARE * sum(map(available_memory, devices)))
