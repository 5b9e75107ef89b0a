"""What llguidance refuses for reasons of its own: the smallest schemas that it refuses are opened, keyword by keyword."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from eft_integrations.chat.schemas.tree import ANNOTATIONS, REFERENCES, subschemas
from eft_integrations.chat.schemas.trial import UNSATISFIABLE, problem

MAX_DEPTH = 256
"""Steps from schema to schema on llguidance's way through a document: it is recursive, and overflows its stack near 1,600."""
MAX_SECONDS = 1.0
"""Of the thread's time, for all trials of one schema; then it is opened as a whole. A trial takes a millisecond, one of a hostile
schema 400, and tens of megabytes.
"""

TOO_LARGE = "schema too large"
"""How llguidance says that it has given up."""
MOST_TOO_LARGE = 3
"""Trials that may end so, each of which takes tens of megabytes; then the schema is opened as a whole."""

SUSPECTS = (
    "pattern", "format", "multipleOf", "minProperties", "maxProperties", "minLength", "maxLength", "minItems", "maxItems",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "patternProperties", "allOf", "anyOf", "$ref", "const", "enum",
    "additionalProperties", "required", "prefixItems", "items", "properties", "type",
)  # fmt: skip
"""Keywords of a schema in the order in which it is tried without them."""
IN_PLACE = (*REFERENCES, "allOf", "anyOf", "oneOf")
ORIGINS: Mapping[str, tuple[str, ...]] = {
    "pattern": ("pattern", "format"),
    "allOf": (*IN_PLACE, "format"),
    "anyOf": ("anyOf", "oneOf"),
    "$ref": REFERENCES,
    "prefixItems": ("prefixItems", "items"),
    "items": ("items", "additionalItems", "unevaluatedItems"),
    "properties": ("properties", "propertyNames"),
    "patternProperties": ("patternProperties", "propertyNames"),
    "additionalProperties": ("additionalProperties", "unevaluatedProperties", "propertyNames"),
}
"""What a keyword of the grammar's schema was called in the user's."""
OURS = ("type", "additionalProperties")
"""What is added where the user does not say it."""


class _LateError(Exception):
    """The trials of a schema took too long."""


class Repair:
    """Opens what llguidance does not take.

    Args:
        root: the schema; it is changed.
        definitions: what it refers to as `#/$defs/...`; they are changed too.
        origins: the user's schemas of which these are made, by the identity of these.
        compositions: identities of those that are made of several at once.
        lose: is told the user's schema and the keywords that are opened.
    """

    def __init__(
        self,
        root: dict[str, Any],
        definitions: Mapping[str, Any],
        origins: Mapping[int, Mapping[str, Any]],
        compositions: Collection[int],
        lose: Callable[..., None],
    ) -> None:
        self._root = root
        self._definitions = definitions
        self._origins = origins
        self._compositions = compositions
        self._lose = lose
        self._repaired: set[int] = set()
        self._deadline = time.thread_time() + MAX_SECONDS
        self._num_too_large = 0

    def run(self) -> None:
        """Afterwards llguidance takes the schema with its definitions."""
        self._cut(self._root, 0, set())
        try:
            if self._problem(self._root) is not None:
                self._repair(self._root)
        except _LateError:
            for keyword in list(self._root):
                self._open(self._root, keyword)

    def _cut(self, schema: object, depth: int, seen: set[str]) -> None:
        """Open references that stand too deep, in the order in which llguidance reads the document."""
        if not isinstance(schema, dict):
            return
        for keyword in list(schema):
            if keyword == "$ref" and (target := _name(schema)) not in seen:
                if depth >= MAX_DEPTH:
                    self._open(schema, "$ref")
                else:
                    seen.add(target)
                    self._cut(self._definitions[target], depth + 1, seen)
            elif keyword != "$ref":
                for _, own in subschemas({keyword: schema[keyword]}):
                    self._cut(own, depth + 1, seen)

    def _open(self, schema: dict[str, Any], keyword: str) -> None:
        """A keyword of a composition is made of all that stands in place there."""
        is_composed = id(schema) in self._compositions
        del schema[keyword]
        origin = self._origins.get(id(schema))
        if origin is None:
            return
        said = [key for key in ORIGINS.get(keyword, (keyword,)) if key in origin]
        if is_composed:
            said = [key for key in origin if key not in ANNOTATIONS]
        if said or keyword not in OURS:
            self._lose(origin, *(said or (keyword,)))

    def _problem(self, schema: dict[str, Any]) -> str | None:
        if time.thread_time() > self._deadline:
            raise _LateError
        needed = needed_by(schema, self._definitions)
        reason = problem({**schema, "$defs": needed} if needed else schema)
        if reason is not None and TOO_LARGE in reason:
            self._num_too_large += 1
            if self._num_too_large > MOST_TOO_LARGE:
                raise _LateError
        return reason

    def _repair(self, schema: dict[str, Any]) -> None:
        """Make a schema that was refused acceptable: first what stands inside of it, then itself."""
        if id(schema) in self._repaired:
            return
        self._repaired.add(id(schema))
        for is_empty in (False, True):  # that no value fits is no fault of a part that may be left out
            for own in self._inside(schema):
                reason = self._problem(own)
                if reason is not None and reason.startswith(UNSATISFIABLE) == is_empty:
                    self._repair(own)
                    if self._problem(schema) is None:
                        return
        opened: list[str] = []
        for keyword in [key for key in SUSPECTS if key in schema]:
            opened.append(keyword)
            if self._is_fine_without(schema, opened):
                break
        for keyword in opened[:-1]:  # which of them were in the way?
            others = [other for other in opened if other != keyword]
            if self._is_fine_without(schema, others):
                opened = others
        for keyword in opened:
            self._open(schema, keyword)

    def _is_fine_without(self, schema: dict[str, Any], keywords: list[str]) -> bool:
        return self._problem({key: own for key, own in schema.items() if key not in keywords}) is None

    def _inside(self, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if "$ref" in schema and isinstance(target := self._definitions[_name(schema)], dict):
            yield target
        yield from (own for _, own in subschemas(schema) if isinstance(own, dict))


def needed_by(schema: object, definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the definitions that a schema needs."""
    needed: dict[str, Any] = {}
    waiting = [schema]
    while waiting:
        for name in _names(waiting.pop()):
            if name not in needed:
                needed[name] = definitions[name]
                waiting.append(needed[name])
    return needed


def _name(schema: Mapping[str, Any]) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _names(schema: object) -> Iterator[str]:
    """The definitions that a schema refers to."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield _name(schema)
        for _, own in subschemas(schema):
            yield from _names(own)
