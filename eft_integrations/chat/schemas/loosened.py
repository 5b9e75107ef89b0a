"""A schema in other words, for values that are made up: what no grammar holds, as something near it that one does."""

from __future__ import annotations

import re
from typing import Any

from eft_integrations.chat.schemas.tree import rebuilt

LOOK_AROUND = re.compile(r"\(\?<?[=!](?:[^()\\]|\\.){0,256}\)")


def in_other_words(schema: object) -> Any:
    """What a list must contain as its first items, and patterns without their look-around. A value that fits the result need not
    fit the schema.

    >>> in_other_words({"pattern": "^(?=a)[a-c]+$"})
    {'pattern': '^[a-c]+$'}
    """
    copy = rebuilt(schema, in_other_words)
    if not isinstance(copy, dict):
        return copy
    if isinstance(copy.get("pattern"), str):
        copy["pattern"] = LOOK_AROUND.sub("", copy["pattern"])
    if isinstance(copy.get("contains"), dict) and "prefixItems" not in copy:
        item = {"allOf": [copy["contains"], copy.get("items", True)]}
        fewest = int(copy.get("minContains", 1))
        copy |= {"prefixItems": [item] * fewest, "minItems": max(fewest, copy.get("minItems", 0))}
    return copy
