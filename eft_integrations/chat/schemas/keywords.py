"""Keywords of JSON Schema: which of them a grammar gets, and when one of them says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from eft_integrations.chat.schemas.names import UNIONS
from eft_integrations.chat.schemas.tree import REFERENCES

LARGEST = 2**53
"""Whole numbers beyond are not told apart: llguidance reads numbers as floats."""
LARGEST_STEP = 1000
"""Of `multipleOf`, in units of its last digit, all steps of a schema multiplied: llguidance takes a minute for 9,999,991."""

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
SIZES = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
ORDER = (
    "type", *BOUNDS, *SIZES[:2], "pattern", "format", "prefixItems", "items", *SIZES[2:4],
    "properties", "patternProperties", "additionalProperties", "required", *SIZES[4:], "const", "enum", "$ref", "anyOf", "allOf",
)  # fmt: skip
"""Keywords that a grammar gets, in the order in which llguidance reads them."""

NEVER_HELD: Mapping[str, str] = {
    **dict.fromkeys(("uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems"), "array"),
    **dict.fromkeys(("propertyNames", "dependentRequired", "dependentSchemas", "dependencies"), "object"),
    **dict.fromkeys(("contentEncoding", "contentMediaType", "contentSchema"), "string"),
    **dict.fromkeys(("not", "if"), ""),
}
"""Keywords that a mask does not hold, and the type that they speak of."""


def is_alone(schema: Mapping[str, Any], *others: str) -> bool:
    """Whether nothing else in a schema speaks of the same value's parts."""
    in_place = {*REFERENCES, "allOf", *UNIONS, "if", "dependentSchemas", "dependencies"}
    return not set(schema) & {*in_place, *others}


def is_too_large(value: object) -> bool:
    """Whether a JSON value holds a number that cannot be told from its neighbours."""
    match value:
        case int() | float():
            return abs(value) > LARGEST
        case list():
            return any(is_too_large(own) for own in value)
        case dict():
            return any(is_too_large(own) for own in value.values())
    return False


def bounds_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The bounds of numbers. `true` as an exclusive bound is draft 4's way to exclude the bound beside it.

    >>> bounds_of({"minimum": 0, "exclusiveMinimum": True})
    {'exclusiveMinimum': 0}
    """
    bounds = {keyword: schema[keyword] for keyword in BOUNDS if keyword in schema}
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(bounds.get(exclusive), bool) and bounds.pop(exclusive) and bound in bounds:
            bounds[exclusive] = bounds.pop(bound)
    return bounds


def step_of(multiple: float) -> int:
    """What `multipleOf` says, in units of its last digit.

    >>> step_of(0.25), step_of(10), step_of(1e-3)
    (25, 10, 1)
    """
    _, digits, exponent = Decimal(str(multiple)).normalize().as_tuple()
    return int("".join(map(str, digits)) + "0" * max(int(exponent), 0))


def says_nothing(schema: Mapping[str, Any], keyword: str) -> bool:
    """Whether a keyword allows everything, or was said in other words."""
    value = schema[keyword]
    match keyword:
        case "uniqueItems":
            return value is False or schema.get("maxItems", 2) <= 1
        case "contains":
            return schema.get("minContains") == 0 and "maxContains" not in schema
        case "minContains" | "maxContains":
            return "contains" not in schema
        case "unevaluatedItems":
            return value is True or "items" in schema or is_alone(schema, "contains")
        case "propertyNames" | "contentSchema" | "dependentRequired" | "dependentSchemas" | "dependencies":
            return value is True or value == {}
        case "not":
            return value is False
        case "if":
            return not {"then", "else"} & set(schema)
    return False
