"""Which weights a request may ask for: free, fixed, or inside bounds; of a composition, and of a key in place of it.

What is said nearest to the caller decides, pair by pair: the key's policy, else the composition's, else `DEFAULT`. The weights that
the operator gave a composition are always allowed, wherever they lie. Of a schedule every number counts that it can be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator

from eft_engine import errors
from eft_engine.weights import Weight, as_json, numbers_of
from eft_integrations.server.errors import PERMISSION, ApiError, Kind, shortened


def _readable(value: object) -> object:
    """One error that says what a policy is, in place of one for each of the forms that it might have had."""
    if isinstance(value, Mapping):
        return {name: _readable_rule(rule, f"the rule of {name!r}") for name, rule in value.items()}
    return _readable_rule(value, "a weight policy")


def _readable_rule(value: object, what: str) -> object:
    match value:
        case "free" | "fixed":
            return value
        case [int() | float() as low, int() | float() as high] if not {type(low), type(high)} & {bool}:
            if not -math.inf < low <= high < math.inf:
                raise ValueError(f"bounds are two finite numbers, the lower one first, got [{low:g}, {high:g}]")
            return (float(low), float(high))
    raise ValueError(f"{what} must be 'free', 'fixed' or [low, high], got {value!r:.80}")


Bounds = tuple[float, float]
"""The smallest and the largest weight."""
Rule = Literal["free", "fixed"] | Bounds
"""free: any number; fixed: the composition's own weight; or bounds."""
PolicySetting = Annotated[Rule | dict[str, Rule], BeforeValidator(_readable)]
"""A rule for every pair, or rules by pair name."""

DEFAULT: Bounds = (0.0, 2.0)
"""Of pairs of which nobody says anything."""


FIELD = "eft_reward_weights"
"""The field that weights come in."""


class WeightForbiddenError(ApiError):
    """A weight that the server's policy does not allow (403), or something that would have the same effect.

    Attributes:
        pair: whose weight it is.
        weight: what was asked for.
    """

    def __init__(self, message: str, *, pair: str, weight: Weight, option: str = FIELD) -> None:
        super().__init__(message, Kind(403, PERMISSION, "weight_forbidden", option))
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

    def allows_nothing_of(self, pairs: Collection[str]) -> bool:
        """Whether every one of these pairs may be left out: its weight may be 0.

        >>> WeightPolicy.of({"chat": [0.5, 1.0]}, DEFAULT).allows_nothing_of(["chat"])
        False
        """
        return self.allows_of(pairs, 0.0)

    def allows_of(self, pairs: Collection[str], number: float) -> bool:
        """Whether every one of these pairs may have this weight, whatever the operator's own is."""
        return all(_holds(self.rule(pair) or DEFAULT, number) for pair in pairs)


NOTHING_SAID = WeightPolicy({})
OPERATORS_OWN = WeightPolicy.of(None, DEFAULT)
"""Where nobody wrote a policy."""


def _holds(rule: Rule, number: float) -> bool:
    """Whether a rule allows a number, whatever the operator's own weight is."""
    if isinstance(rule, str):
        return rule == "free"
    low, high = rule
    return low <= number <= high


def in_words(weight: Weight) -> str:
    """A weight as errors name it.

    >>> in_words(0.50)
    '0.5'
    """
    told = as_json(weight)
    return f"{told:g}" if isinstance(told, float) else json.dumps(told, ensure_ascii=False)[:200]


def check_weights(
    asked: Mapping[str, Weight], own: Mapping[str, Weight], policy: WeightPolicy, *, option: str = FIELD
) -> None:
    """Check what a request asks for: a number, or every number that a schedule can be.

    Args:
        asked: settled weights by pair name.
        own: the composition's own. Pairs that the request brings have none; where all weights are fixed, `DEFAULT` bounds theirs.
        policy: what is allowed.
        option: the field that asks.

    Raises:
        WeightForbiddenError: the policy does not allow one of them.
    """
    for pair, weight in asked.items():
        rule = policy.rule(pair) or DEFAULT
        if rule == "free" or (pair in own and weight == own[pair]):
            continue
        if rule == "fixed" and pair in own:
            raise WeightForbiddenError(
                f"the weight of pair {pair!r} is fixed at {in_words(own[pair])}, got {in_words(weight)}; leave it out",
                pair=pair,
                weight=weight,
                option=option,
            )
        low, high = DEFAULT if isinstance(rule, str) else rule
        outside = [number for number in numbers_of(weight) if not low <= number <= high]
        if outside:
            can_be = "" if isinstance(weight, float) else f", which can be {outside[0]:g}"
            raise WeightForbiddenError(
                f"the weight of pair {shortened(pair)!r} must be from {low:g} to {high:g} here, got {in_words(weight)}{can_be}",
                pair=pair,
                weight=weight,
                option=option,
            )


def check_pairs(policy: WeightPolicy, pairs: Collection[str], *, owner: str) -> None:
    """Check that a policy names pairs that are there: a rule under a misspelt name would hold for nothing.

    Raises:
        InvalidOptionError: it names another one.
    """
    if unknown := sorted(set(policy.named) - set(pairs)):
        raise errors.InvalidOptionError(
            f"the weight_policy of {owner} has a rule for {unknown[0]!r}, and the pairs are {', '.join(sorted(pairs))}",
            option="weight_policy",
            value=unknown[0],
        )


def described(pairs: Mapping[str, Weight], policy: WeightPolicy) -> dict[str, object]:
    """The rules in force by pair, as `/v1/models` tells them: free, fixed, or [low, high]."""
    rules = {pair: policy.rule(pair) or DEFAULT for pair in pairs}
    return {pair: rule if isinstance(rule, str) else list(rule) for pair, rule in rules.items()}
