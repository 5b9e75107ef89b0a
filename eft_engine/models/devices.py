"""Devices: which one a name means, whether it is here, and how much memory is free on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch

from eft_engine.errors import InvalidOptionError

SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
"""Words of transformers for a map over all devices of the machine."""

WITH_MEMORY = ("cuda", "xpu")
"""Kinds of accelerators that have memory of their own and tell how much is free; others are counted with the machine's."""

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux mounts the limits of containers and services."""

OWN_GROUPS = Path("/proc/self/cgroup")
"""Where Linux tells a process its groups."""

DISK = "disk"
"""A place of a device map that is no device: weights are read from there in every pass."""


def resolve_device(device: str, *, member: str) -> str:
    """A device name, with `auto` decided: the first GPU when there is one.

    Raises:
        InvalidOptionError: it names no device of torch, or one that is not here.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device, member=member, option="device")
    return device


def check_device(device: Any, *, member: str, option: str) -> torch.device:
    """The device of a name or a number.

    Args:
        device: as the user wrote it.
        member: whose option it is, for messages.
        option: which one.

    Raises:
        InvalidOptionError: it names no device of torch, or one that is not here.
    """
    try:
        found = _device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidOptionError(
            f"{member}: {option}={device!r} names no device of torch; give 'cpu', 'cuda', 'cuda:1', 'mps', ..., or 'auto'",
            option=option,
            value=device,
        ) from error
    reason = _why_absent(found)
    if reason is not None:
        raise InvalidOptionError(
            f"{member}: {option}={device!r} cannot be used: {reason}; leave it out, or give 'cpu'",
            option=option,
            value=device,
        )
    return found


def _device(device: Any) -> torch.device:
    """A number is a GPU, also where torch knows none and would not say which kind it means."""
    return torch.device(
        f"cuda:{device}" if isinstance(device, int) and not torch.accelerator.is_available() else device
    )


def _why_absent(device: torch.device) -> str | None:
    if device.type == "cpu":
        return None
    if device.type == "meta":
        return "it holds no numbers"
    module: Any = getattr(torch, device.type, None)
    if device.type == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        return f"this torch ({torch.__version__}) was built without CUDA"
    if not hasattr(module, "is_available"):
        return f"this torch ({torch.__version__}) computes on no {device.type}"
    if not module.is_available():
        return f"torch {torch.__version__} finds no {'GPU' if device.type == 'cuda' else device.type} on this machine"
    if device.index is not None and device.index >= module.device_count():
        number = module.device_count()
        last = f"{device.type}:{number - 1}"
        return (
            f"torch finds {number} of them, the last is {last!r}" if number > 1 else f"torch finds one, {device.type}:0"
        )
    return None


def check_device_map(device_map: str | dict[str, Any], *, member: str) -> None:
    """Raise `InvalidOptionError` where a map names a device that is not here."""
    if isinstance(device_map, str):
        if device_map not in SPREAD:
            check_device(device_map, member=member, option="device_map")
        return
    for place in device_map.values():
        if place != DISK:
            check_device(place, member=member, option="device_map")


def devices_of_map(device_map: str | dict[str, Any]) -> tuple[str, ...] | None:
    """The devices that a checked map may use; None: the disk too, so there is no limit."""
    if isinstance(device_map, str):
        if device_map not in SPREAD:
            return (full_name(device_map),)
        here = [kind for kind in WITH_MEMORY if getattr(torch, kind).is_available()]
        own = [f"{kind}:{index}" for kind in here for index in range(getattr(torch, kind).device_count())]
        return (*own, "cpu")
    places = list(device_map.values())
    if DISK in places:
        return None
    return tuple(dict.fromkeys(full_name(place) for place in places))


def full_name(device: Any) -> str:
    """One name for one device: `cuda` is `cuda:0`, and so is 0."""
    found = _device(device)
    return "cpu" if found.type == "cpu" else f"{found.type}:{found.index or 0}"


def available_memory(device: str) -> int:
    """Free bytes of a device. On a CPU, those of the machine, or fewer where a container or service has a limit."""
    found = torch.device(device)
    if found.type in WITH_MEMORY:
        free: int = getattr(torch, found.type).mem_get_info(found)[0]
        return free
    return min([psutil.virtual_memory().available, *_free_in_cgroups()])


def _free_in_cgroups() -> list[int]:
    """Free bytes under each limit that holds for this process; empty where none does, or the system has no such limits."""
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    free: list[int] = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            free += _free_under(CGROUPS, path, ("memory.max", "memory.current", ""))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
            free += _free_under(CGROUPS / "memory", path, names)
    return free


def _free_under(root: Path, path: str, names: tuple[str, str, str]) -> list[int]:
    """Free bytes in a group and all groups around it. Inside a container the path may be the host's, which is not mounted there:
    then the root is the container's own group.

    Args:
        root: where the groups are mounted.
        path: of the process's group.
        names: of the file with the limit and of the one with what is used, and what stands before words of `memory.stat`.
    """
    limit_file, used_file, prefix = names
    own = root / path.lstrip("/")
    groups = [group for group in (own, *own.parents) if group == root or root in group.parents]
    free = []
    for group in groups:
        try:
            limit = (group / limit_file).read_text(encoding="utf-8").strip()
            if limit == "max":
                continue
            used = int((group / used_file).read_text(encoding="utf-8"))
            statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        except OSError:
            continue
        # What the system has read of files counts as used, and is given up when memory is wanted.
        files = sum(int(statistics.get(f"{prefix}{kind}", 0)) for kind in ("inactive_file", "active_file"))
        free.append(max(0, int(limit) - used + files))
    return free
