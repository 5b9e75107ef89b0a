"""Definitions that no value with an end fits: a list that must hold a list that must hold a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eft_integrations.chat.schemas.tree import subschemas


def without_endless(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema for grammars in which whatever refers to such a definition says that nothing fits; it is changed, and so are the
    definitions that it refers to as `#/$defs/...`.

    >>> endless = {"A": {"type": "array", "items": {"$ref": "#/$defs/A"}, "minItems": 1}}
    >>> without_endless({"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]}, endless)
    {'anyOf': [False, {'type': 'null'}]}
    """
    finite: set[str] = set()
    waiting = dict(definitions)
    while found := [name for name, own in reversed(waiting.items()) if _has_end(own, finite)]:
        finite |= set(found)
        waiting = {name: own for name, own in waiting.items() if name not in finite}
    if not waiting:
        return schema
    for name in definitions:
        definitions[name] = _pruned(definitions[name], finite)
    return _pruned(schema, finite)


def _has_end(schema: object, finite: set[str]) -> bool:
    """Whether some value fits that has an end, as far as is known. What several schemas say together is not looked into."""
    if not isinstance(schema, Mapping):
        return schema is not False
    if "$ref" in schema and _name(schema) not in finite:
        return False
    if not all(_has_end(own, finite) for own in schema.get("allOf") or ()):
        return False
    if schema.get("anyOf") and not any(_has_end(own, finite) for own in schema["anyOf"]):
        return False
    types = schema.get("type", "any")
    if types == "object":
        properties, others = schema.get("properties") or {}, schema.get("additionalProperties", True)
        return all(_has_end(properties.get(name, others), finite) for name in schema.get("required") or ())
    if types == "array":
        prefix, others = schema.get("prefixItems") or [], schema.get("items", True)
        needed = schema.get("minItems", 0)
        return all(_has_end(own, finite) for own in prefix[:needed]) and (
            needed <= len(prefix) or _has_end(others, finite)
        )
    return True


def _pruned(schema: Any, finite: set[str]) -> Any:
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema and _name(schema) not in finite:
        return False
    for (keyword, *inner), own in list(subschemas(schema)):
        if inner:
            schema[str(keyword)][inner[0]] = _pruned(own, finite)
        else:
            schema[str(keyword)] = _pruned(own, finite)
    return schema


def _name(schema: Mapping[str, Any]) -> str:
    return str(schema["$ref"]).rpartition("/")[2]
