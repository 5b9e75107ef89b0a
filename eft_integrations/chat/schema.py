"""JSON schemas of tools and answers, as grammars read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def close_schema(schema: Any) -> Any:
    """A copy of a JSON schema in which objects that name their properties allow no others, unless they say so themselves.

    >>> close_schema({"type": "object", "properties": {}})
    {'type': 'object', 'properties': {}, 'additionalProperties': False}
    """
    match schema:
        case Mapping():
            closed = {key: _close_keyword(key, value) for key, value in schema.items()}
            if closed.get("type") == "object" and "properties" in closed:
                closed.setdefault("additionalProperties", False)
            return closed
        case list():
            return [close_schema(item) for item in schema]
    return schema


def _close_keyword(key: str, value: Any) -> Any:
    if key in ("enum", "const", "default", "examples"):  # values, not schemas
        return value
    if key in ("properties", "$defs", "definitions", "patternProperties") and isinstance(value, Mapping):
        return {name: close_schema(own) for name, own in value.items()}
    return close_schema(value)
