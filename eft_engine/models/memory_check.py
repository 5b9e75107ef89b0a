"""Whether weights, and what computing with them takes, fit into memory: refused with numbers before anything is read, instead of
being killed while reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from eft_engine.errors import LoadOutOfMemoryError
from eft_engine.models.devices import available_memory, devices_of_map, full_name
from eft_engine.models.planned_network import PlannedNetwork
from eft_engine.models.process_group import num_ranks


def check_memory(
    networks: Iterable[PlannedNetwork], beside: Mapping[str, int] | None = None, *, work_bytes: int = 0
) -> None:
    """Count all weights, and the work of a step, against what is free. A network with a device map counts against all devices that
    the map may use together, with those that have their place there.

    Args:
        networks: all of them, the one with whose device a step works first.
        beside: bytes that are held with a network besides its weights, by its name.
        work_bytes: what the smallest step takes beside weights (see `work_memory`).

    Raises:
        LoadOutOfMemoryError: they do not fit.
    """
    placed: dict[tuple[str, ...], list[PlannedNetwork]] = {}
    needed: dict[tuple[str, ...], int] = {}
    work: dict[tuple[str, ...], int] = {}
    for network in networks:
        devices = _devices(network)
        if devices is not None:
            placed.setdefault(devices, []).append(network)
            needed[devices] = needed.get(devices, 0) + _bytes(network) + (beside or {}).get(network.name, 0)
            work.setdefault(devices, work_bytes if not work else 0)
    free: dict[str, int] = {}
    for devices in sorted(needed, key=len):
        inside = [other for other in needed if set(other) <= set(devices)]
        for device in set(devices) - set(free):
            free[device] = available_memory(device)
        passing = max(
            own.loading_bytes for other in inside for own in placed[other]
        )  # they are loaded one after another
        weights, available = sum(needed[other] for other in inside) + passing, sum(free[device] for device in devices)
        computing = sum(work[other] for other in inside)
        if weights + computing > available:
            raise _does_not_fit(
                devices, [own for other in inside for own in placed[other]], weights, computing, available
            )


def _devices(network: PlannedNetwork) -> tuple[str, ...] | None:
    """Where a network may lie; None: there is no limit."""
    device_map = network.member.device_map
    return devices_of_map(device_map) if device_map else (full_name(network.device),)


def _bytes(network: PlannedNetwork) -> int:
    """On one device. The ranks of a tensor-parallel network share a machine's memory, and have a GPU each."""
    parts = num_ranks() if network.member.tensor_parallel and network.device != "cpu" else 1
    return network.parameter_bytes // parts


def _does_not_fit(
    devices: Sequence[str], networks: Sequence[PlannedNetwork], weights: int, computing: int, available: int
) -> LoadOutOfMemoryError:
    where = devices[0] if len(devices) == 1 else f"{', '.join(devices)} together"
    beside = f", a step of one request works with about {gib(computing)} more," if computing else ""
    return LoadOutOfMemoryError(
        f"the weights need {gib(weights)} on {where}{beside} and {gib(available)} are free; use {advice(networks)}",
        needed_bytes=weights + computing,
        available_bytes=available,
        device=", ".join(devices),
    )


def out_of_memory(network: PlannedNetwork, error: BaseException) -> LoadOutOfMemoryError:
    """The typed error where memory ran out while a network was read."""
    device = network.device if network.member.device_map is None else "the devices of its device_map"
    return LoadOutOfMemoryError(
        f"{network.name}: loading {network.source} ran out of memory on {device} ({error}); its weights need "
        f"{gib(network.parameter_bytes)} ({network.type_name}); use {advice([network])}",
        needed_bytes=network.parameter_bytes,
        available_bytes=None,
        device=network.device,
        member=network.name,
        source=str(network.source),
    )


def advice(networks: Sequence[PlannedNetwork]) -> str:
    """What takes less memory than these networks do."""
    dense = [
        own for own in networks if own.runtime == "torch" and own.type_name == str(own.dtype).removeprefix("torch.")
    ]
    choices = []
    if any(own.dtype is not None and own.dtype.itemsize > 2 for own in dense):
        choices.append("a smaller dtype (dtype='bfloat16')")
    if dense:
        choices.append("a quantization_config")
    if any(own.runtime == "torch" and own.member.device_map is None for own in networks):
        choices.append("a device_map")
    return f"{', '.join(choices)}, or smaller models" if choices else "smaller models"


def gib(num_bytes: int) -> str:
    """For people.

    >>> gib(3 * 2**29)
    '1.50 GiB'
    """
    return f"{num_bytes / 2**30:.2f} GiB"
