"""Schemas as a model gets to see them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

from eft_integrations.chat.schemas.tree import SchemaDocument, rebuilt

DEFINITIONS = ("$defs", "definitions")
MAX_SHOWN = 2000
"""Schemas that are shown at most: definitions that name each other twice would be without number."""
MAX_DEPTH = 64
"""Schemas inside of one another that are shown at most."""


def inlined(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which definitions stand where they are named; one that leads back to itself is an object without further words.

    For the eyes of a model only: what a grammar holds comes from the schema itself.

    >>> inlined({"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"enum": [1]}}})
    {'properties': {'a': {'enum': [1]}}}
    """
    document = SchemaDocument(copy.deepcopy(dict(schema)))
    rest = itertools.count(MAX_SHOWN, -1)

    def shown(node: object, way: tuple[int, ...]) -> Any:
        if not isinstance(node, dict):
            return node
        if next(rest) <= 0 or len(way) > MAX_DEPTH:
            return {}
        target = document.target(node)
        own = {key: value for key, value in node.items() if key not in DEFINITIONS}
        if target is None:
            return rebuilt(own, lambda inner: shown(inner, (*way, id(node))))
        del own["$ref"]
        if id(target) in way:
            return {"type": "object", **own}
        whole = shown(target, (*way, id(node), id(target)))
        return {**whole, **own} if isinstance(whole, dict) else own

    found: dict[str, Any] = shown(document.root, ())
    return found


def untitled(schema: object) -> Any:
    """A schema without titles, which say nothing that names do not and cost tokens of the prompt. A property called title stays.

    >>> untitled({"title": "A", "properties": {"title": {"title": "Title", "type": "string"}}})
    {'properties': {'title': {'type': 'string'}}}
    """
    inner = rebuilt(schema, untitled)
    return {key: value for key, value in inner.items() if key != "title"} if isinstance(inner, dict) else inner
