"""What a forked child has to forget: locks that another thread held at the fork, and what belongs to its parent."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class _Forgets(Protocol):
    def in_child(self) -> None:
        """Called in a forked child before anything else runs there."""


_KNOWN: WeakSet[_Forgets] = WeakSet()


def forgets_in_children(thing: _Forgets) -> None:
    """From now on `thing.in_child()` is called in every child that this process forks, as long as the thing lives."""
    _KNOWN.add(thing)


def _in_child() -> None:
    for thing in list(_KNOWN):
        thing.in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
