"""Where schemas stand inside of a schema, and what its references mean.

Words: a *place* of a schema is its JSON pointer in the document ("/properties/a"). A subschema stands *in place* where it speaks of
the same value as the schema around it (`allOf`, `$ref`), and *below* where it speaks of a part of that value (`properties`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, SchemaRegistry, SchemaResource, specification_with

ONE_IN_PLACE = ("not", "if", "then", "else")
LISTS_IN_PLACE = ("allOf", "anyOf", "oneOf")
MAPS_IN_PLACE = ("dependentSchemas", "dependencies")
ONE_BELOW = (
    "items", "additionalItems", "contains", "additionalProperties", "propertyNames", "unevaluatedItems",
    "unevaluatedProperties", "contentSchema",
)  # fmt: skip
LISTS_BELOW = ("prefixItems", "items")
MAPS_BELOW = ("properties", "patternProperties", "$defs", "definitions")

REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
ANNOTATIONS = frozenset(
    {
        "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "nullable",
        "discriminator", "$comment", "$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary",
        "$defs", "definitions",
    }
)  # fmt: skip
"""Keywords that say nothing about a value."""
OLD_DRAFTS = ("http://json-schema.org/draft-03", "http://json-schema.org/draft-04", "http://json-schema.org/draft-06",
              "http://json-schema.org/draft-07")  # fmt: skip
"""In these, what stands beside a `$ref` says nothing."""
MAX_HOPS = 64
"""References that lead to one another in place; a longer chain says nothing to anybody, and would end in a stack overflow."""

Path = tuple[str | int, ...]
Found = TypeVar("Found")


def subschemas(schema: object, *, below: bool = True, in_place: bool = True) -> Iterator[tuple[Path, object]]:
    """The schemas directly inside of a schema, in the order in which they are written, each with its path.

    >>> [path for path, _ in subschemas({"properties": {"a": {}}, "anyOf": [{}, True], "enum": [{}]})]
    [('properties', 'a'), ('anyOf', 0), ('anyOf', 1)]
    """
    if not isinstance(schema, Mapping):
        return
    ones = (*(ONE_BELOW if below else ()), *(ONE_IN_PLACE if in_place else ()))
    lists = (*(LISTS_BELOW if below else ()), *(LISTS_IN_PLACE if in_place else ()))
    maps = (*(MAPS_BELOW if below else ()), *(MAPS_IN_PLACE if in_place else ()))
    for keyword, value in schema.items():
        if keyword in ones and isinstance(value, Mapping | bool):
            yield (keyword,), value
        elif keyword in lists and isinstance(value, list | tuple):
            yield from (((keyword, index), own) for index, own in enumerate(value))
        elif keyword in maps and isinstance(value, Mapping):
            yield from (((keyword, name), own) for name, own in value.items() if isinstance(own, Mapping | bool))


def rebuilt(schema: object, change: Callable[[object], object]) -> Any:
    """A copy of a schema in which each schema directly inside of it is another."""
    if not isinstance(schema, Mapping):
        return schema
    copy: dict[str, Any] = {
        key: list(value) if isinstance(value, list | tuple) else dict(value) if isinstance(value, Mapping) else value
        for key, value in schema.items()
    }
    for (keyword, *inner), own in subschemas(schema):
        if inner:
            copy[str(keyword)][inner[0]] = change(own)
        else:
            copy[str(keyword)] = change(own)
    return copy


def pointer(at: str, path: Path) -> str:
    """The place of what stands at a path inside of a place.

    >>> pointer("/$defs/A", ("properties", "a/b"))
    '/$defs/A/properties/a~1b'
    """
    return at + "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


class SchemaDocument:
    """A schema as a whole. Nothing that it names is fetched.

    Args:
        schema: plain JSON of which no part occurs twice as the same object (what `json.loads` gives); it belongs to the document,
            which takes away what its dialect does not look at.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self.root = schema
        dialect = schema.get("$schema")
        self._refs_stand_alone = isinstance(dialect, str) and dialect.startswith(OLD_DRAFTS)
        self._specification = specification_with(dialect if isinstance(dialect, str) else "", default=DRAFT202012)
        self._places: dict[int, str] = {}
        self._resolvers: dict[int, Any] = {}
        self._nodes: dict[int, dict[str, Any]] = {}
        self._remembered: dict[tuple[str, int], Any] = {}
        self._originals: dict[int, Mapping[str, Any]] = {}
        self._made: dict[int, dict[str, Any]] = {}
        self._anchors: list[str] = []
        self._endless: set[int] = set()
        self._visited: set[int] = set()
        registry: SchemaRegistry = Registry().with_resource("", self._resource(schema))
        self._enter(schema, "", registry.resolver(""))
        for node in self.nodes():
            self._find_endless(node, [])

    def _resource(self, schema: object) -> SchemaResource:
        return self._specification.create_resource(schema)

    def _enter(self, node: object, at: str, resolver: Any) -> None:
        """Note a schema and everything inside of it."""
        if not isinstance(node, dict) or id(node) in self._places:
            return
        if self._refs_stand_alone and "$ref" in node:
            for keyword in [key for key in node if key != "$ref" and key not in ANNOTATIONS]:
                del node[keyword]
        if "$id" in node:
            resolver = resolver.in_subresource(self._resource(node))
        if isinstance(anchor := node.get("$dynamicAnchor"), str):
            self._anchors.append(anchor)
        self._places[id(node)], self._resolvers[id(node)], self._nodes[id(node)] = at, resolver, node
        for path, own in subschemas(node):
            self._enter(own, pointer(at, path), resolver)

    def place(self, node: Mapping[str, Any]) -> str:
        """Where a schema of the document stands, or one that is made of it."""
        return self._places[id(node)]

    def made(self, node: dict[str, Any], of: Mapping[str, Any]) -> dict[str, Any]:
        """Note a schema that is made of one of the document: it stands where that stands."""
        self._places[id(node)], self._resolvers[id(node)] = self._places[id(of)], self._resolvers[id(of)]
        self._originals[id(node)] = self.original(of)
        self._made[id(node)] = node
        if id(of) in self._endless:
            self._endless.add(id(node))
        return node

    def original(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        """The schema of the document that one is made of; itself where it is one."""
        return self._originals.get(id(node), node)

    def nodes(self) -> list[dict[str, Any]]:
        """All schemas of the document that are objects, from the outside to the inside."""
        return list(self._nodes.values())

    def node(self, identity: int) -> dict[str, Any]:
        """The schema of the document with this `id()`, or the one that is made of it."""
        return self._nodes[identity] if identity in self._nodes else self._made[identity]

    def remembered(self, what: str, node: dict[str, Any], find: Callable[[dict[str, Any]], Found]) -> Found:
        """What `find` says of a schema of the document, or one that is made of it; asked once."""
        if (what, id(node)) not in self._remembered:
            self._remembered[what, id(node)] = find(node)
        found: Found = self._remembered[what, id(node)]
        return found

    def target(self, node: Mapping[str, Any], keyword: str = "$ref") -> object | None:
        """The schema that a reference of a schema names; None where there is none, or where it leads back to itself in place."""
        if id(node) in self._endless or not isinstance(name := node.get(keyword), str):
            return None
        if keyword == "$dynamicRef" and self._anchors.count(name.removeprefix("#")) > 1:
            return None  # which one it is depends on the way to it
        if keyword == "$recursiveRef" and any("$recursiveAnchor" in other for other in self._nodes.values()):
            return None
        try:
            found = self._resolvers[id(node)].lookup(name)
        except (
            Unresolvable,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ):  # what pointers into other JSON raise
            return None
        if not isinstance(found.contents, dict | bool):
            return None
        at = name[1:] if name.startswith("#") else name
        self._enter(found.contents, at, found.resolver)
        return found.contents

    def last_target(self, node: dict[str, Any]) -> dict[str, Any]:
        """The schema that a reference without neighbours leads to in the end; itself where it is none."""
        while set(node) - ANNOTATIONS == {"$ref"} and isinstance(inner := self.target(node), dict):
            node = inner
        return node

    def references(self, node: Mapping[str, Any]) -> list[str]:
        """The keywords of a schema that name another."""
        return [keyword for keyword in REFERENCES if keyword in node]

    def _find_endless(self, node: object, way: list[tuple[int, bool]]) -> None:
        """Note references that lead back in place to a schema on the way to them. `way`: schemas, and whether one was left by a
        reference.
        """
        if not isinstance(node, dict) or id(node) in self._visited:
            return
        nodes = [own for own, _ in way]
        for keyword in self.references(node):
            target = self.target(node, keyword)
            if id(target) in (*nodes, id(node)) or sum(by_reference for _, by_reference in way) >= MAX_HOPS:
                self._endless.add(id(node))
            else:
                self._find_endless(target, [*way, (id(node), True)])
        for _, own in subschemas(node, below=False):
            if id(own) in nodes:
                self._endless.add(next(left for left, by_reference in reversed(way) if by_reference))
            else:
                self._find_endless(own, [*way, (id(node), False)])
        self._visited.add(id(node))
