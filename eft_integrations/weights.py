"""Reward weights for everything that a block of code does, however deep in a chain the model is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_CURRENT: ContextVar[float | Mapping[str, float] | None] = ContextVar("eft_reward_weights", default=None)


@contextmanager
def weights(reward_weights: float | Mapping[str, float]) -> Iterator[None]:
    """Calls inside the block use these weights, in this thread or task and in those that inherit its context.

    A weight that is given with the call itself goes first; see the table in the README.

    Args:
        reward_weights: a number for every pair, or weights by pair name (pairs not named keep their own).
    """
    token = _CURRENT.set(reward_weights)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_weights() -> float | Mapping[str, float] | None:
    """The weights of the innermost `weights` block, or None."""
    return _CURRENT.get()
