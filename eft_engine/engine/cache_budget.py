"""How many bytes all key/value caches may have."""

from __future__ import annotations

import logging

from eft_engine.config import EngineConfig
from eft_engine.models.devices import available_memory, full_name
from eft_engine.models.loading import Trio
from eft_engine.models.memory_check import gib
from eft_engine.models.work_memory import step_bytes

MARGIN = 0.1
"""Of the memory that is free once everything is loaded, what neither caches nor a step's work are to take."""

logger = logging.getLogger(__name__)


def cache_budget(config: EngineConfig, trio: Trio) -> int | None:
    """What `EngineConfig.max_kv_cache_bytes` comes to, for a trio that is loaded; None: there is no bound.

    A bound that is larger than what is free is kept, and one line is logged.
    """
    wanted = config.max_kv_cache_bytes
    if wanted is None:
        return None
    devices = dict.fromkeys(full_name(str(network.device)) for network in trio.networks)
    free = sum(map(available_memory, devices))
    step = step_bytes(trio.networks, config, num_members=len(trio.members), width=trio.vocabulary.width)
    room = int((1 - MARGIN) * free) - step
    if wanted == "auto":
        return max(1, room)
    if wanted > room:
        logger.warning(
            "max_kv_cache_bytes=%d allows %s, and %s are free, of which the largest step of %d requests works with about %s; "
            "requests may run out of memory before they wait: give max_kv_cache_bytes='auto', or lower max_num_seqs",
            wanted,
            gib(wanted),
            gib(free),
            config.max_num_seqs,
            gib(step),
        )
    return wanted
