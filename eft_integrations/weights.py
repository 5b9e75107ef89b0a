"""Which reward weights a call has: blocks of code, precedence, and how weights are written where no mapping can be."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar, cast

from eft_engine import errors
from eft_engine.config import RewardWeights
from eft_engine.weights import as_json, checked_weight, is_schedule, weights_as_json
from eft_integrations.blocks import Block, WeightsWarning, current_weights, enter, in_effect, leave, weights_of_call
from eft_integrations.lazy import carried, watch

__all__ = [
    "HEADER",
    "WeightsWarning",
    "current_weights",
    "first_given",
    "parse_alias",
    "parse_weights",
    "settle",
    "weights",
    "weights_form",
    "weights_header",
    "weights_of_call",
]

HEADER = "X-EFT-Reward-Weights"
"""Carries weights to a server where a request's body cannot."""

Function = TypeVar("Function", bound=Callable[..., Any])


class weights(contextlib.ContextDecorator):
    """Calls inside the block use these weights: in this thread or task, and in those that inherit its context.

    A weight that is given with the call itself goes first (docs/weights.md). An inner block stands in place of the outer one,
    whole: a pair that it does not name has its own weight. Streams that are made inside and read later keep the weights. As a
    decorator it surrounds every call of a function or coroutine function, and every piece of a generator.

    Args:
        reward_weights: a number for every pair, or weights by pair name (pairs not named keep their own).

    Raises:
        ConfigurationError: this very object is entered already; every `with` wants one of its own.
    """

    def __init__(self, reward_weights: RewardWeights) -> None:
        self._reward_weights = reward_weights
        self._block: Block | None = None

    def __enter__(self) -> Self:
        if self._block is not None:
            raise errors.ConfigurationError(
                f"this block was entered already; write `with weights({self._reward_weights!r}):` each time"
            )
        watch()
        self._block = enter(self._reward_weights, sys._getframe(1))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        block, self._block = self._block, None
        assert block is not None
        leave(block, failed=kind is not None)

    def __call__(self, function: Function) -> Function:
        """Surround every call of a function with such a block; of a generator, every piece.

        Raises:
            ConfigurationError: it is no function: a class, or a property, a class method or a tool.
        """
        if isinstance(function, type | staticmethod | classmethod) or not callable(function):
            raise errors.ConfigurationError(
                f"weights({self._reward_weights!r}) decorates functions, got a {type(function).__name__}; "
                "write it below other decorators, next to the function"
            )

        @functools.wraps(function)
        def call(*args: Any, **keywords: Any) -> Any:
            with weights(self._reward_weights):
                return carried(function(*args, **keywords), in_effect())

        @functools.wraps(function)
        async def acall(*args: Any, **keywords: Any) -> Any:
            with weights(self._reward_weights):
                return await function(*args, **keywords)

        return cast("Function", acall if inspect.iscoroutinefunction(function) else call)


def first_given(*carried: RewardWeights) -> RewardWeights:
    """The one rule of precedence, of the adapters and of the server: what stands nearer to the call goes first, whole.

    Give the carriers from the nearest to the farthest; a carrier that is None says nothing.

    >>> first_given(None, 0.0, {"chat": 1.0})
    0.0
    """
    return next((weights for weights in carried if weights is not None), None)


def parse_weights(text: str) -> float | dict[str, Any]:
    """A number for every pair, or weights by pair name; in JSON a weight may be a schedule.

    >>> parse_weights("0.5"), parse_weights("chat=0.5,json=1")
    (0.5, {'chat': 0.5, 'json': 1.0})
    >>> parse_weights('{"chat": {"kind": "gate", "by": "kl", "above": 0.1}}')
    {'chat': {'kind': 'gate', 'by': 'kl', 'above': 0.1}}

    Raises:
        ValueError: neither a number nor a list of pair=weight, nor JSON of weights.
    """
    if text.lstrip().startswith("{"):
        return _parse_json(text)
    if "=" in text:
        return _parse_list(text)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"weights are a number or written pair=number, got {text!r}") from None


def weights_header(reward_weights: RewardWeights) -> dict[str, str]:
    """The header that carries weights to a server, for clients that set headers once.

    Schedules are written in JSON.

    >>> weights_header({"chat": 0.5, "json": 1}), weights_header(None)
    ({'X-EFT-Reward-Weights': 'chat=0.5,json=1'}, {})
    >>> from eft_engine import LinearRamp
    >>> weights_header({"chat": LinearRamp()})
    {'X-EFT-Reward-Weights': '{"chat": {"kind": "linear_ramp", "start": 1.0, "end": 0.0, "num_tokens": 64}}'}

    Raises:
        InvalidWeightError: a weight is no finite number and no schedule.
    """
    match weights_form(reward_weights):
        case None:
            return {}
        case {"kind": str()} as schedule:
            return {HEADER: json.dumps(schedule)}
        case dict() as by_pair if any(isinstance(weight, dict) for weight in by_pair.values()):
            return {HEADER: json.dumps(by_pair)}
        case dict():
            assert isinstance(reward_weights, Mapping), "it has been one"
            return {HEADER: ",".join(f"{pair}={weight}" for pair, weight in reward_weights.items())}
    return {HEADER: str(reward_weights)}


def weights_form(reward_weights: RewardWeights) -> float | dict[str, Any] | None:
    """Weights as they stand in JSON: a number, a schedule (which has a `kind`), either by pair name, or None.

    >>> from eft_engine import LinearRamp
    >>> weights_form({"chat": 1}), weights_form(LinearRamp())["kind"]
    ({'chat': 1.0}, 'linear_ramp')

    Raises:
        InvalidWeightError: a weight is no finite number and no schedule.
    """
    if reward_weights is None:
        return None
    if is_schedule(reward_weights) or not isinstance(reward_weights, Mapping):
        return as_json(checked_weight(reward_weights, "every pair"))
    return weights_as_json({pair: checked_weight(own, f"pair {pair!r}") for pair, own in reward_weights.items()})


def settle(keywords: Mapping[str, object], *further: RewardWeights, fixed: bool = False) -> dict[str, object]:
    """A call's keywords with the weights that it, the surrounding block or one of `further` asks for, the first of them.

    To be called when the call is made: a stream that is read later keeps the weights of its call. Where the weights of a model are
    `fixed`, only the call itself goes before them.

    >>> with weights(0.2):
    ...     settle({}, 0.3), settle({"reward_weights": 0.1}), settle({}, 0.3, fixed=True)
    ({'reward_weights': 0.2}, {'reward_weights': 0.1}, {})
    """
    has_own = fixed or keywords.get("reward_weights") is not None
    of_block = weights_of_call(has_own=has_own)
    if has_own:
        return dict(keywords)
    chosen = first_given(of_block, *further)
    return dict(keywords) if chosen is None else {**keywords, "reward_weights": chosen}


def parse_alias(model: str) -> tuple[str, dict[str, float] | None]:
    """A model's name and the weights that may be written behind it.

    >>> parse_alias("eft@chat=0.5,json=1"), parse_alias("eft")
    (('eft', {'chat': 0.5, 'json': 1.0}), ('eft', None))

    Raises:
        ValueError: what follows the @ is not a list of pair=weight.
    """
    name, found, listed = model.partition("@")
    try:
        return name, _parse_list(listed) if found else None
    except ValueError as error:
        raise ValueError(f"{error} in {model!r}") from None


def _parse_json(text: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(text)
        weights_form(found)
    except (ValueError, RecursionError, errors.InvalidWeightError) as error:
        raise ValueError(f"weights in JSON are a schedule, or numbers and schedules by pair name: {error}") from None
    return found


def _parse_list(text: str) -> dict[str, float]:
    weights = {}
    for item in text.split(","):
        pair, equals, value = item.partition("=")
        if pair.strip() in weights:
            raise ValueError(f"the weight of pair {pair.strip()!r} is written twice")
        try:
            weights[pair.strip()] = float(value)
        except ValueError:
            equals = ""
        if not (pair.strip() and equals):
            raise ValueError(f"weights behind a name are written pair=number, got {item!r}")
    return weights
