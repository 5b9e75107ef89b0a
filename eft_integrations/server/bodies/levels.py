"""The one walk over JSON of a body: without recursion, since what is walked may be nested as deep as a parser allows."""

from __future__ import annotations

from collections.abc import Iterator


def levels(value: object) -> Iterator[list[object]]:
    """The values of each level of nesting, the value itself first; names of fields are none.

    >>> list(levels({"a": [1, {"b": 2}]}))
    [[{'a': [1, {'b': 2}]}], [[1, {'b': 2}]], [1, {'b': 2}], [2]]
    """
    level = [value]
    while level:
        yield level
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        level = below
