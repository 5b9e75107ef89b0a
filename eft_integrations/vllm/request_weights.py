"""The weights of a request: where vLLM's requests carry them, how they are written, and what is refused.

The front end checks them, so that a mistake ends as an error of its request. A worker reads them again with
`effective_weights`, which cannot fail: an exception in a worker would end all requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eft_integrations.weights import parse_weights

KEY = "eft_weights"
"""Name in `vllm_xargs` of a request over HTTP, and in `SamplingParams.extra_args`."""

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
    for key in given:
        if key.lower().startswith("eft"):
            raise ValueError(f"unknown argument {key!r}; the weights of a request are written {KEY!r}")
    weights = []
    for name, weight in zip(own, _by_pair(value, own), strict=True):
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) <= MAX_ABS_WEIGHT:
            raise ValueError(
                f"{KEY}: the weight of pair {name!r} must be a finite number from {-MAX_ABS_WEIGHT:g} to {MAX_ABS_WEIGHT:g}, "
                f"got {weight!r}"
            )
        weights.append(float(weight))
    return tuple(weights)


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
