"""Numbers inside of a schema's bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any


class NoValueError(Exception):
    """No value lies on this way."""


def number(schema: Mapping[str, Any], turn: int, *, is_whole: bool) -> int | float:
    """The number that is `turn` steps from the lowest, or from 0 where 0 is one.

    Raises:
        NoValueError: there is none.

    >>> number({"minimum": 2}, 1, is_whole=True), number({"maximum": 9}, 1, is_whole=False)
    (3, 1.0)
    >>> number({"exclusiveMinimum": 0, "maximum": 0.5}, 0, is_whole=False)
    0.25
    """
    step = Fraction(repr(schema.get("multipleOf", 1)))
    if is_whole and step.denominator != 1:
        step = Fraction(step.numerator)
    low, high = _bound(schema, "inimum", step, 1), _bound(schema, "aximum", step, -1)
    if low is not None and high is not None and low > high:
        if is_whole or "multipleOf" in schema:
            raise NoValueError
        return _between(schema)
    count = turn if low is None or high is None else turn % int((high - low) / step + 1)
    if (low is None or low <= 0) and (high is None or count * step <= high):
        value = count * step
    elif low is not None:
        value = low + count * step
    else:
        assert high is not None, "a number without bounds is found above"
        value = high - count * step
    return int(value) if is_whole else float(value)


def _bound(schema: Mapping[str, Any], name: str, step: Fraction, side: int) -> Fraction | None:
    """The lowest (side 1) or highest (side -1) multiple of a step that the bounds allow."""
    found: list[Fraction] = []
    if (limit := schema.get(f"m{name}")) is not None:
        found.append(math.ceil(side * Fraction(repr(limit)) / step) * step)
    if (limit := schema.get(f"exclusiveM{name}")) is not None:
        found.append((math.floor(side * Fraction(repr(limit)) / step) + 1) * step)
    return side * max(found) if found else None


def _between(schema: Mapping[str, Any]) -> float:
    """A number between bounds that no whole number fits between."""
    low = max(Fraction(repr(schema[key])) for key in ("minimum", "exclusiveMinimum") if key in schema)
    high = min(Fraction(repr(schema[key])) for key in ("maximum", "exclusiveMaximum") if key in schema)
    return float((low + high) / 2)
