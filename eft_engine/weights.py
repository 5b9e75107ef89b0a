"""Weights: how much of each pair's behaviour there is, as a number, or as a rule that gives every token a number of its own.

Every rule decides by what is known *before* its token is drawn: the position, the text so far, or the members' distributions at
that position. So a token's weight is the same whether it is drafted, verified, scored or generated anew with the same seed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)

from eft_engine.errors import InvalidWeightError, UnknownPairError
from eft_engine.options import Options

Finite = Annotated[float, Field(strict=False, allow_inf_nan=False)]

MOST_TOKENS = 10**9
"""No text is longer; a number without a bound would not fit where weights are computed."""

Measure = Literal["base_entropy", "base_confidence", "kl", "total_variation", "jensen_shannon"]
"""What the members' distributions at a position tell, before the token there is drawn:

    base_entropy       of the base, in nats; 0 where it is certain
    base_confidence    probability of the base's best token ("nudging", Fei et al. 2024, arXiv 2410.09300)
    kl                 KL(tuned || reference) in nats: how much the pair has to say here
    total_variation    between tuned and reference, 0 to 1
    jensen_shannon     between tuned and reference, in bits, 0 to 1 (AdaCAD, Wang et al. 2024, arXiv 2409.07394)

Of a prompt pair the positive side stands for tuned and the negative one for reference; of a term the base does, as it has none.
"""


class LinearRamp(Options):
    """From `start` at the first token in equal steps to `end` at token number `num_tokens`, and `end` from there on."""

    kind: Literal["linear_ramp"] = "linear_ramp"
    start: Finite = Field(default=1.0, description="weight of the first token")
    end: Finite = Field(default=0.0, description="weight from token `num_tokens` on")
    num_tokens: int = Field(default=64, ge=1, le=MOST_TOKENS, description="tokens until `end` is reached")


class FirstTokens(Options):
    """`weight` for the first tokens, `then` for the others."""

    kind: Literal["first_tokens"] = "first_tokens"
    num_tokens: int = Field(ge=1, le=MOST_TOKENS, description="how many tokens count as first")
    weight: InnerWeight = Field(default=1.0, description="weight of these")
    then: InnerWeight = Field(default=0.0, description="weight of all others")


class FromMarker(Options):
    """`before` until the text holds `marker`, `weight` behind it. Texts of control tokens count."""

    kind: Literal["from_marker"] = "from_marker"
    marker: str = Field(min_length=1, max_length=200, description="what has to be written first")
    weight: InnerWeight = Field(default=1.0, description="weight behind the marker")
    before: InnerWeight = Field(default=0.0, description="weight up to the end of the marker")


class Between(Options):
    """`weight` between two markers, as those of a thought, and `outside` elsewhere. Texts of control tokens count."""

    kind: Literal["between"] = "between"
    opening: str = Field(min_length=1, max_length=200, description="what begins it")
    closing: str = Field(min_length=1, max_length=200, description="what ends it")
    weight: InnerWeight = Field(
        default=1.0, description="weight behind the opening marker, up to the end of the closing one"
    )
    outside: InnerWeight = Field(default=0.0, description="weight elsewhere")
    starts_inside: bool = Field(default=False, description="the prompt has the opening marker at its end")


class InJsonStrings(Options):
    """`weight` inside the strings of JSON, `outside` for braces, numbers, and all text before and behind JSON.

    A token that opens a string is outside, one that may close it is inside. JSON begins with the first brace or bracket.
    """

    kind: Literal["in_json_strings"] = "in_json_strings"
    weight: InnerWeight = Field(default=1.0, description="weight inside strings")
    outside: InnerWeight = Field(default=0.0, description="weight elsewhere")
    keys: bool = Field(default=False, description="names of properties count as strings too")


class Gate(Options):
    """`weight` where a measure of the position is inside bounds, `otherwise` elsewhere."""

    kind: Literal["gate"] = "gate"
    by: Measure = Field(description="what is measured (see `Measure`)")
    above: Finite | None = Field(default=None, description="the gate is open above this")
    below: Finite | None = Field(default=None, description="the gate is open below this")
    weight: Finite = Field(default=1.0, description="weight where it is open")
    otherwise: Finite = Field(default=0.0, description="weight where it is closed")

    @model_validator(mode="after")
    def _has_bounds(self) -> Gate:
        if self.above is None and self.below is None:
            raise ValueError("needs a bound: above=..., below=..., or both")
        if self.above is not None and self.below is not None and self.above >= self.below:
            raise ValueError("above must be smaller than below, or the gate is never open")
        return self


class Proportional(Options):
    """`factor` times a measure of the position, `most` at most: AdaCAD (arXiv 2409.07394) is this by `jensen_shannon`."""

    kind: Literal["proportional"] = "proportional"
    to: Measure = Field(default="jensen_shannon", description="what is measured (see `Measure`)")
    factor: Finite = Field(default=1.0, description="weight per unit of the measure")
    most: Finite = Field(default=1.0, gt=0.0, description="bound of the weight, above and (negative) below")


MeasuredWeight = Gate | Proportional
"""Rules that ask the members' distributions."""

PlacedSchedule = LinearRamp | FirstTokens | FromMarker | Between | InJsonStrings
"""Rules that ask position and text. Their weights may be rules too, each level one more condition."""

Schedule = Annotated[PlacedSchedule | MeasuredWeight, Field(discriminator="kind")]
"""A weight that follows the token."""


def _as_weight(value: object, validate: ValidatorFunctionWrapHandler) -> Any:
    """In one sentence, where a union would tell of every kind that it is not."""
    if isinstance(value, SCHEDULES):
        return value
    if isinstance(value, Mapping) and "kind" not in value:
        raise ValueError(f"a schedule has a kind ({', '.join(KINDS)})")
    try:
        return validate(value)
    except ValidationError as error:
        finding = error.errors(include_url=False)[-1]  # the first one is that it is no number
        reason = finding["msg"].removeprefix("Value error, ") if isinstance(value, Mapping) else "it is neither"
        raise ValueError(f"must be a finite number or a schedule; {reason}") from None


Weight = Annotated[Finite | Schedule, WrapValidator(_as_weight)]
InnerWeight = Annotated[
    Weight,
    WithJsonSchema(
        {"anyOf": [{"type": "number"}, {"type": "object", "required": ["kind"]}], "description": "a weight again"}
    ),
]
"""A weight inside of a rule. Its JSON schema does not say again what rules there are, or it would have no end."""


RewardWeights = Weight | Mapping[str, Weight] | None
"""A weight for every pair, a mapping by pair name (pairs not named keep their own weight), or None (own weights)."""

SCHEDULES = (LinearRamp, FirstTokens, FromMarker, Between, InJsonStrings, Gate, Proportional)
KINDS = tuple(schedule.model_fields["kind"].default for schedule in SCHEDULES)

for _schedule in SCHEDULES:
    _schedule.model_rebuild()

_WEIGHT: TypeAdapter[Any] = TypeAdapter(Weight)
MAX_NESTING = 4


def is_schedule(value: object) -> bool:
    """Whether this is a rule, or a mapping that describes one (it has a `kind`)."""
    return isinstance(value, SCHEDULES) or (isinstance(value, Mapping) and isinstance(value.get("kind"), str))


def parts(weight: Weight) -> Iterator[Weight]:
    """A weight and all weights inside of it.

    >>> len(list(parts(FirstTokens(num_tokens=3, weight=InJsonStrings(), then=0.5))))
    5
    """
    yield weight
    for own in _inside(weight):
        yield from parts(own)


def _inside(weight: Weight) -> tuple[Weight, ...]:
    match weight:
        case FirstTokens(weight=first, then=second):
            return (first, second)
        case FromMarker(weight=first, before=second):
            return (first, second)
        case Between(weight=first, outside=second) | InJsonStrings(weight=first, outside=second):
            return (first, second)
    return ()


def _depth(weight: Weight) -> int:
    """How many rules stand inside of each other."""
    if not isinstance(weight, SCHEDULES):
        return 0
    return 1 + max(map(_depth, _inside(weight)), default=0)


def numbers_of(weight: Weight) -> list[float]:
    """All numbers that it can be, or the bounds of these.

    >>> numbers_of(0.5), numbers_of(FirstTokens(num_tokens=3)), numbers_of(LinearRamp(start=2.0))
    ([0.5], [1.0, 0.0], [2.0, 0.0])
    """
    found: list[float] = []
    for own in parts(weight):
        match own:
            case Gate():
                found += [own.weight, own.otherwise]
            case Proportional():
                found += [math.copysign(own.most, own.factor) if own.factor else 0.0, 0.0]
            case LinearRamp():
                found += [own.start, own.end]
            case float() | int():
                found.append(float(own))
    return found


def is_off(weight: Weight) -> bool:
    """Whether it is 0 for every token."""
    return not any(numbers_of(weight))


def peak(weight: Weight) -> float:
    """The number furthest from 0 that it can be."""
    return max(numbers_of(weight), key=abs)


def as_json(weight: Weight) -> float | dict[str, Any]:
    """A number, or what a rule is written as in JSON and YAML.

    >>> as_json(0.5), as_json(Gate(by="kl", above=0.1))["kind"]
    (0.5, 'gate')
    """
    return weight.model_dump(mode="json", exclude_none=True) if isinstance(weight, SCHEDULES) else float(weight)


def weights_as_json(weights: Mapping[str, Weight]) -> dict[str, float | dict[str, Any]]:
    """Weights by name as they are written in JSON."""
    return {name: as_json(weight) for name, weight in weights.items()}


def resolve_weights(
    reward_weights: RewardWeights, own: Mapping[str, Weight], *, owner: str = "this engine"
) -> dict[str, Weight]:
    """Effective weight of every pair: one for all, a mapping for some, None for the pairs' `own` weights. `owner`, of
    the pairs, is named in errors.

    Raises:
        UnknownPairError: the mapping names a pair that does not exist.
        InvalidWeightError: a weight is no finite number and no schedule.
    """
    if reward_weights is None:
        return dict(own)
    if is_schedule(reward_weights) or not isinstance(reward_weights, Mapping):
        return dict.fromkeys(own, checked_weight(reward_weights, "every pair"))
    for name in reward_weights:
        if name not in own:
            raise UnknownPairError(
                f"there is no pair {name!r}; {owner} has {', '.join(map(repr, own)) or 'no pairs'}",
                name=str(name),
                known=list(own),
            )
    return dict(own) | {name: checked_weight(weight, f"pair {name!r}") for name, weight in reward_weights.items()}


def checked_weight(weight: object, whose: str) -> Weight:
    """A finite number or a schedule; `whose` is named in errors.

    Raises:
        InvalidWeightError: it is neither.
    """
    if is_schedule(weight):
        return _checked_schedule(weight, whose)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) <= sys.float_info.max:
        raise InvalidWeightError(
            f"the weight of {whose} must be a finite number or a schedule, got {weight!r}", value=weight
        )
    return float(weight)


def _checked_schedule(given: object, whose: str) -> Weight:
    try:
        schedule: Weight = _WEIGHT.validate_python(given)
    except ValidationError as error:
        reason = error.errors(include_url=False)[-1]["msg"].removeprefix("Value error, ")
        raise InvalidWeightError(f"the weight of {whose}: {reason}", value=given) from None
    if _depth(schedule) > MAX_NESTING:
        raise InvalidWeightError(
            f"the weight of {whose} has more than {MAX_NESTING} schedules inside of each other", value=given
        )
    return schedule
