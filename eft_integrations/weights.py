"""Reward weights for everything that a block of code does, however deep in a chain the model is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

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


def settle(keywords: Mapping[str, Any], *further: float | Mapping[str, float] | None) -> dict[str, Any]:
    """A call's keywords with the weights that it, the surrounding block or one of `further` asks for, the first of them.

    To be called when the call is made: a stream that is read later keeps the weights of its call.

    >>> with weights(0.2):
    ...     settle({}, 0.3), settle({"reward_weights": 0.1})
    ({'reward_weights': 0.2}, {'reward_weights': 0.1})
    """
    carried = (keywords.get("reward_weights"), current_weights(), *further)
    chosen = next((weights for weights in carried if weights is not None), None)
    return dict(keywords) if chosen is None else {**keywords, "reward_weights": chosen}


def parse_alias(model: str) -> tuple[str, dict[str, float] | None]:
    """A model's name and the weights that may be written behind it.

    >>> parse_alias("eft@chat=0.5,json=1"), parse_alias("eft")
    (('eft', {'chat': 0.5, 'json': 1.0}), ('eft', None))

    Raises:
        ValueError: what follows the @ is not a list of pair=weight.
    """
    name, found, listed = model.partition("@")
    if not found:
        return name, None
    weights = {}
    for item in listed.split(","):
        pair, equals, value = item.partition("=")
        try:
            weights[pair.strip()] = float(value)
        except ValueError:
            equals = ""
        if not (pair.strip() and equals):
            raise ValueError(f"weights behind a model's name are written pair=number, got {item!r} in {model!r}")
    return name, weights
