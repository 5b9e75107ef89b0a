"""Which weights a request may ask for: free, fixed, or inside bounds; of a composition, and of a key in place of it.

What is said nearest to the caller decides, pair by pair: the key's policy, else the composition's, else `DEFAULT`. The weights that
the operator gave a composition are always allowed, wherever they lie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, FiniteFloat

from eft_integrations.server.errors import PERMISSION, ApiError, Kind


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound comes first, got {list(bounds)}")
    return bounds


Bounds = Annotated[tuple[FiniteFloat, FiniteFloat], AfterValidator(_ordered)]
"""The smallest and the largest weight."""
Rule = Literal["free", "fixed"] | Bounds
"""free: any number; fixed: the composition's own weight; or bounds."""
PolicySetting = Rule | dict[str, Rule]
"""A rule for every pair, or rules by pair name."""

DEFAULT: Bounds = (0.0, 2.0)
"""Of pairs of which nobody says anything."""


class WeightForbiddenError(ApiError):
    """A weight that the server's policy does not allow (403).

    Attributes:
        pair: whose weight it is.
        weight: what was asked for.
    """

    def __init__(self, message: str, *, pair: str, weight: float) -> None:
        super().__init__(message, Kind(403, PERMISSION, "weight_forbidden", "eft_reward_weights"))
        self.pair = pair
        self.weight = weight


@dataclass(frozen=True)
class WeightPolicy:
    """Rules by the name of a pair; `every` holds for those that are not named.

    >>> WeightPolicy.of({"helpful": "fixed"}, DEFAULT).rule("harmless")
    (0.0, 2.0)
    """

    named: Mapping[str, Rule]
    every: Rule | None = None

    @classmethod
    def of(cls, setting: PolicySetting | None, default: Rule | None = None) -> WeightPolicy:
        """From a setting; `default` is the rule of pairs of which it says nothing."""
        if isinstance(setting, Mapping):
            return cls(dict(setting), default)
        return cls({}, default if setting is None else setting)

    def rule(self, pair: str) -> Rule | None:
        """What holds for a pair; None: nothing is said."""
        return self.named.get(pair, self.every)

    def over(self, farther: WeightPolicy) -> WeightPolicy:
        """What this one says, and the farther one where it says nothing."""
        if self.every is not None:
            return self
        return WeightPolicy({**farther.named, **self.named}, farther.every)


NOTHING_SAID = WeightPolicy({})
OPERATORS_OWN = WeightPolicy.of(None, DEFAULT)
"""Where nobody wrote a policy."""


def check_weights(asked: Mapping[str, float], own: Mapping[str, float], policy: WeightPolicy) -> None:
    """Check what a request asks for.

    Args:
        asked: settled weights by pair name.
        own: the composition's own.

    Raises:
        WeightForbiddenError: the policy does not allow one of them.
    """
    for pair, weight in asked.items():
        rule = policy.rule(pair) or DEFAULT
        if weight == own[pair] or rule == "free":
            continue
        if rule == "fixed":
            raise WeightForbiddenError(
                f"the weight of pair {pair!r} is fixed at {own[pair]:g}, got {weight:g}; leave it out",
                pair=pair,
                weight=weight,
            )
        low, high = rule
        if not low <= weight <= high and math.isfinite(weight):
            raise WeightForbiddenError(
                f"the weight of pair {pair!r} must be from {low:g} to {high:g} here, got {weight:g}",
                pair=pair,
                weight=weight,
            )


def described(pairs: Mapping[str, float], policy: WeightPolicy) -> dict[str, object]:
    """The rules in force by pair, as `/v1/models` tells them: free, fixed, or [low, high]."""
    rules = {pair: policy.rule(pair) or DEFAULT for pair in pairs}
    return {pair: rule if isinstance(rule, str) else list(rule) for pair, rule in rules.items()}
