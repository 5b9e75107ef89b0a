"""Lists without repetitions out of a few values, which a grammar can hold as a list of them all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from eft_integrations.chat.schemas.facts import canonical, values_of
from eft_integrations.chat.schemas.tree import ANNOTATIONS, SchemaDocument

MAX_LISTS = 100
"""Lists that are written out at most: four values make 65."""


def unique_lists(document: SchemaDocument, schema: Mapping[str, Any]) -> list[list[Any]] | None:
    """All lists that an array schema with `uniqueItems` allows, the short ones first; None where they are too many to be listed."""
    says = {"type", "items", "uniqueItems", "minItems", "maxItems"}
    items = schema.get("items")
    if schema.get("uniqueItems") is not True or schema.get("type") != "array" or set(schema) - says - ANNOTATIONS:
        return None
    values = _few(document, items)
    if values is None:
        return None
    lengths = range(int(schema.get("minItems", 0)), min(int(schema.get("maxItems", len(values))), len(values)) + 1)
    found = itertools.chain.from_iterable(itertools.permutations(values, length) for length in lengths)
    lists = [list(own) for own in itertools.islice(found, MAX_LISTS + 1)]
    return lists if 0 < len(lists) <= MAX_LISTS else None


def _few(document: SchemaDocument, items: object) -> list[Any] | None:
    """The values of the items, where they are listed."""
    if not isinstance(items, dict):
        return None
    if set(items) - ANNOTATIONS == {"$ref"}:
        return _few(document, document.target(items))
    if set(items) - ANNOTATIONS == {"type"} and items["type"] == "boolean":
        return [False, True]
    if set(items) - ANNOTATIONS - {"type"} not in ({"enum"}, {"const"}):
        return None
    listed = {canonical(value): value for value in values_of(items) or ()}
    kinds = {"string": str, "integer": int}
    kind = kinds.get(str(items.get("type")))
    return (
        None
        if "type" in items and kind is None
        else [own for own in listed.values() if kind is None or type(own) is kind]
    )
