"""Networks that compute with threads of their own, at the same time.

A pass of one token is bound by memory and by threads that wait for one another, so two threads are not twice as fast as one. When a
single request takes a step without drafts, its networks run at the same time, each with a share of the threads. Passes of more
tokens make better use of all threads, and run one after another.

What is chosen depends on sizes alone, never on measured time: with other threads, sums are rounded otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping

from eft_engine.models.network import Network

MAX_LOAD = 1.3
"""A network whose share of the weights asks for this many times the threads that it would get would be waited for."""


def threads_side_by_side(passes: Mapping[Network, int]) -> dict[Network, int] | None:
    """The threads of each network when all of them run at the same time; None when they should run one after another.

    Args:
        passes: how many tokens each network reads.
    """
    if len(passes) < 2 or any(network.num_threads < 2 or number != 1 for network, number in passes.items()):
        return None
    num_threads = min(network.num_threads for network in passes)
    total = sum(network.weight_bytes for network in passes)
    wanted = {network: num_threads * network.weight_bytes / total for network in passes}
    threads = {network: max(1, int(share)) for network, share in wanted.items()}
    for network in sorted(passes, key=lambda network: threads[network] - wanted[network]):
        if sum(threads.values()) < num_threads:
            threads[network] += 1
    if any(share > MAX_LOAD * threads[network] for network, share in wanted.items()):
        return None
    return threads
