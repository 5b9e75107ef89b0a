"""How many expressions a text would have to match all at once. What a grammar of them takes grows with two to the power of their
number, in time and in memory, and llguidance has no bound for it: 24 of them in 600 bytes take minutes and gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

MOST_TOGETHER = 8
"""Expressions that may hold together for one text."""
MOST_PAIRS = 50_000
"""Pairs of schemas that are looked at, one with the other."""

Below = tuple[str, str | int | None]
"""Where a part of a value stands: a name in an object or a place in a list; None: all that have no schema of their own."""


class TooManyPairsError(Exception):
    """Schemas multiply."""


@dataclass
class _Profile:
    """Expressions that hold together for a value, and for its parts."""

    own: int = 0
    below: dict[Below, _Profile] = field(default_factory=dict)

    def at(self, place: Below) -> _Profile | None:
        """For a part."""
        return self.below.get(place) or self.below.get((place[0], None))


def most_together(schema: object) -> int:
    """The most expressions that hold together for one text of a schema with its definitions, as grammars have it.

    Raises:
        TooManyPairsError: it was not found out in `MOST_PAIRS` steps.

    >>> most_together({"allOf": [{"properties": {"a": {"pattern": "b"}}}, {"properties": {"a": {"pattern": "c"}}}]})
    2
    >>> most_together({"anyOf": [{"pattern": "b"}, {"pattern": "c"}]})
    1
    """
    definitions = schema.get("$defs", {}) if isinstance(schema, Mapping) else {}
    counting = _Counting(definitions)
    return counting.most(counting.profile(schema))


class _Counting:
    """Profiles of one schema; of each part, and of each pair of parts, one."""

    def __init__(self, definitions: Mapping[str, object]) -> None:
        self._definitions = definitions
        self._profiles: dict[int, _Profile] = {}
        self._pairs: dict[tuple[int, int, bool], _Profile] = {}
        self._nothing = _Profile()
        self._kept: list[object] = []

    def profile(self, schema: object) -> _Profile:
        """What holds together in a schema. One that is met inside of itself counts as none there."""
        if not isinstance(schema, Mapping):
            return self._nothing
        if id(schema) not in self._profiles:
            self._profiles[id(schema)] = self._nothing
            self._kept.append(schema)
            found = _Profile(
                ("pattern" in schema) + ("format" in schema),
                {place: self.profile(own) for place, own in _parts(schema)},
            )
            if "$ref" in schema:
                target = self._definitions.get(str(schema["$ref"]).rpartition("/")[2])
                found = self._joined(found, self.profile(target), together=True)
            for own in schema.get("allOf") or ():
                found = self._joined(found, self.profile(own), together=True)
            either = self._nothing
            for own in schema.get("anyOf") or ():
                either = self._joined(either, self.profile(own), together=False)
            self._profiles[id(schema)] = self._joined(found, either, together=True)
        return self._profiles[id(schema)]

    def _joined(self, first: _Profile, second: _Profile, *, together: bool) -> _Profile:
        """Both at once, or one of the two."""
        if second is self._nothing:
            return first
        if first is self._nothing:
            return second
        key = (id(first), id(second), together)
        if key not in self._pairs:
            if len(self._pairs) >= MOST_PAIRS:
                raise TooManyPairsError
            own = first.own + second.own if together else max(first.own, second.own)
            joined = self._pairs[key] = _Profile(own)
            joined.below = {
                place: self._joined(
                    first.at(place) or self._nothing, second.at(place) or self._nothing, together=together
                )
                for place in {**first.below, **second.below}
            }
            self._kept += [first, second]  # they are known by their identity
        return self._pairs[key]

    def most(self, profile: _Profile) -> int:
        """The most of a value and all of its parts."""
        most, waiting, seen = 0, [profile], {id(profile)}
        while waiting:
            own = waiting.pop()
            most = max(most, own.own)
            for part in own.below.values():
                if id(part) not in seen:
                    seen.add(id(part))
                    waiting.append(part)
        return most


def _parts(schema: Mapping[str, object]) -> Iterator[tuple[Below, object]]:
    """Schemas of the parts of a value. A name may fit any pattern."""
    patterns = schema.get("patternProperties")
    others = list(patterns.values()) if isinstance(patterns, Mapping) else []
    if isinstance(named := schema.get("properties"), Mapping):
        yield from ((("name", name), _all(own, *others)) for name, own in named.items())
    if isinstance(listed := schema.get("prefixItems"), list):
        yield from ((("place", index), own) for index, own in enumerate(listed))
    yield ("place", None), schema.get("items")
    yield ("name", None), _all(schema.get("additionalProperties"), *others)


def _all(schema: object, *others: object) -> object:
    return {"allOf": [schema, *others]} if others else schema
