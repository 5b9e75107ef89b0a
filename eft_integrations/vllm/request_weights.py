"""The weights of a request: where vLLM's requests carry them, how they are written, and what is refused.

The front end checks them, so that a mistake ends as an error of its request. A worker reads them again with
`effective_weights`, which cannot fail: an exception in a worker would end all requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eft_engine.weights import is_schedule
from eft_integrations.weights import parse_weights

KEY = "eft_weights"
"""Name in `vllm_xargs` of a request over HTTP, and in `SamplingParams.extra_args`."""

SHARE_KEY = "eft_min_plausibility"
"""Name in the same places of the share of the base's best token that a token must have; 0: none."""

NO_SCHEDULES = (
    "in vLLM a request keeps its weights, and this is a schedule; give a number, or ask an engine of this package"
)

MAX_ABS_WEIGHT = 1e6
"""Larger weights turn float32 logits into infinities."""


def read_weights(extra_args: Mapping[str, object] | None, own: Mapping[str, float]) -> tuple[float, ...]:
    """Weights of all pairs, in their order, for a request with these extra arguments.

    Args:
        extra_args: `KEY` may be a number for all pairs, a list with one number per pair, a text ("chat=0.5,json=1", or a
            number), or, where Python calls vLLM, a mapping. Without it the pairs keep their own weights.
        own: the pairs' own weights, by name.

    Raises:
        ValueError: anything else, another argument that begins with "eft", or a weight that is not a finite number of usable size.

    >>> read_weights({"eft_weights": "json=0.5"}, {"chat": 1.0, "json": 1.0})
    (1.0, 0.5)
    """
    given = dict(extra_args or {})
    value = given.pop(KEY, None)
    given.pop(SHARE_KEY, None)
    for key in given:
        if key.lower().startswith("eft"):
            raise ValueError(f"unknown argument {key!r}; the weights of a request are written {KEY!r}")
    if is_schedule(value):
        raise ValueError(f"{KEY}: {NO_SCHEDULES}")
    weights = []
    for name, weight in zip(own, _by_pair(value, own), strict=True):
        if is_schedule(weight):
            raise ValueError(f"{KEY}: the weight of pair {name!r}: {NO_SCHEDULES}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) <= MAX_ABS_WEIGHT:
            raise ValueError(
                f"{KEY}: the weight of pair {name!r} must be a finite number from {-MAX_ABS_WEIGHT:g} to {MAX_ABS_WEIGHT:g}, "
                f"got {weight!r}"
            )
        weights.append(float(weight))
    return tuple(weights)


def read_share(extra_args: Mapping[str, object] | None) -> float:
    """The share of the base's best token that a token must have, of a request with these extra arguments; 0: none.

    Raises:
        ValueError: it is no number from 0 to 1.

    >>> read_share({"eft_min_plausibility": 0.1}), read_share(None)
    (0.1, 0.0)
    """
    share = (extra_args or {}).get(SHARE_KEY)
    if share is None:
        return 0.0
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 <= share <= 1.0:
        raise ValueError(f"{SHARE_KEY} must be a number from 0 to 1, got {share!r}")
    return float(share)


def _by_pair(value: object, own: Mapping[str, float]) -> Sequence[object]:
    if isinstance(value, str):
        value = parse_weights(value)
    match value:
        case None:
            return list(own.values())
        case Mapping():
            unknown = [name for name in value if name not in own]
            if unknown:
                raise ValueError(f"{KEY}: there is no pair {unknown[0]!r}; this trio has {', '.join(map(repr, own))}")
            return list({**own, **value}.values())
        case list() | tuple():
            if len(value) != len(own):
                raise ValueError(
                    f"{KEY}: a list needs one number per pair, {len(own)} ({', '.join(own)}), and this one has {len(value)}"
                )
            return value
    return [value] * len(own)


def effective_weights(extra_args: Mapping[str, object] | None, own: Mapping[str, float]) -> tuple[float, ...]:
    """`read_weights` for workers: what the front end should have refused becomes the pairs' own weights.

    >>> effective_weights({"eft_weights": [float("nan")]}, {"chat": 1.0})
    (1.0,)
    """
    try:
        return read_weights(extra_args, own)
    except (ValueError, TypeError, AttributeError):
        return tuple(own.values())


def effective_row(extra_args: Mapping[str, object] | None, own: Mapping[str, float]) -> tuple[float, ...]:
    """What the model reads of a request: `effective_weights`, and behind them the share, which cannot fail either.

    >>> effective_row({"eft_weights": 0.5, "eft_min_plausibility": 0.1}, {"chat": 1.0})
    (0.5, 0.1)
    """
    try:
        share = read_share(extra_args)
    except (ValueError, TypeError, AttributeError):
        share = 0.0
    return (*effective_weights(extra_args, own), share)
