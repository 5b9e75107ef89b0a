"""Which names the objects of a schema may have, and where allowing no others takes nothing away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from eft_integrations.chat.schemas.facts import facts_of
from eft_integrations.chat.schemas.tree import ANNOTATIONS, SchemaDocument

NAMING = frozenset(
    {
        "properties", "required", "additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties",
        "maxProperties", "propertyNames", "dependentRequired", "dependentSchemas", "dependencies", "if",
    }
)  # fmt: skip
"""Keywords that make a composition of a union or a reference beside them: its parts speak of one object together."""
UNIONS = ("anyOf", "oneOf")


@dataclass
class Names:
    """Names that objects of some schemas may have, in the order in which they are written.

    `evaluated`: those of which some schema says what their values are. `is_open`: others are meant to be allowed. `are_listed`:
    some schema lists properties at all. `are_conditional`: which of them count depends on the value.
    """

    listed: dict[str, None] = field(default_factory=dict)
    evaluated: dict[str, None] = field(default_factory=dict)
    is_open: bool = False
    are_listed: bool = False
    are_conditional: bool = False
    most_needed: int = 0

    @property
    def may_close(self) -> bool:
        """Whether an object that has these names alone can fit."""
        return not self.is_open and self.most_needed <= len(self.listed)


def names_of(document: SchemaDocument, schemas: Iterable[object], *, without: Mapping[str, Any] | None = None) -> Names:
    """The names of objects that fit all of the schemas. `without`: a schema whose `unevaluatedProperties` does not count."""
    names, seen = Names(), set[int]()
    for schema in schemas:
        _gather(document, schema, names, seen, without)
    return names


def _gather(
    document: SchemaDocument, schema: object, names: Names, seen: set[int], without: Mapping[str, Any] | None
) -> None:
    if not isinstance(schema, dict) or id(schema) in seen:
        return
    seen.add(id(schema))
    for keyword, value in schema.items():
        match keyword, value:
            case ("properties", dict()):
                names.are_listed = True
                names.evaluated |= dict.fromkeys(value)
                names.listed |= dict.fromkeys(value)
            case ("patternProperties", dict()):
                names.is_open |= bool(value)
            case ("additionalProperties", _):
                names.is_open |= value is not False
            case ("unevaluatedProperties", _):
                names.is_open |= value is not False and schema is not without
            case ("const", dict()):
                names.listed |= dict.fromkeys(value)
            case ("enum", list()):
                names.listed |= {name: None for own in value if isinstance(own, dict) for name in own}
            case ("minProperties", int()):
                names.most_needed = max(names.most_needed, value)
            case ("$ref" | "$dynamicRef" | "$recursiveRef", _):
                target = document.target(schema, keyword)
                names.is_open |= target is None
                _gather(document, target, names, seen, without)
            case ("allOf" | "anyOf" | "oneOf", list()):
                names.are_conditional |= keyword != "allOf"
                for own in value:
                    _gather(document, own, names, seen, without)
            case ("if" | "then" | "else", _):
                names.are_conditional = True
                _gather(document, value, names, seen, without)
            case ("dependentSchemas" | "dependencies" | "dependentRequired", dict()):
                names.are_conditional |= keyword != "dependentRequired"
                for own in value.values():
                    if isinstance(own, list):
                        names.listed |= dict.fromkeys(own)
                    _gather(document, own, names, seen, without)
    names.listed |= dict.fromkeys(schema.get("required") or ())


def is_composed(document: SchemaDocument, schema: Mapping[str, Any]) -> bool:
    """Whether several schemas speak of one object together: then they may not be closed one by one."""
    in_place = len(document.references(schema)) + len(schema.get("allOf") or ()) + sum(key in schema for key in UNIONS)
    return in_place > 1 or (in_place == 1 and any(schema.get(key) not in (None, [], {}) for key in NAMING))


def only_names(document: SchemaDocument, schema: object) -> frozenset[str] | None:
    """The only names that objects have which fit a schema once it is closed; None where there may be others."""
    if not isinstance(schema, dict):
        return frozenset() if schema is False else None
    return document.remembered("names", schema, lambda own: _only_names(document, own))


def _only_names(document: SchemaDocument, schema: dict[str, Any]) -> frozenset[str] | None:
    if "object" not in facts_of(document, schema).kinds:
        return frozenset()
    if is_composed(document, schema) or "properties" in schema:
        names = names_of(document, [schema])
        return frozenset(names.listed) if names.are_listed and names.may_close else None
    branches = [document.target(schema, keyword) for keyword in document.references(schema)]
    branches += [own for keyword in ("allOf", *UNIONS) for own in schema.get(keyword) or ()]
    found = [only_names(document, branch) for branch in branches]
    return frozenset().union(*(own for own in found if own is not None)) if found and None not in found else None


def parts_of(document: SchemaDocument, schema: dict[str, Any], *, seen: set[int] | None = None) -> list[Any]:
    """The schemas that a composition demands all at once, each of them once, without references and `allOf`, in the order of
    writing. One that speaks of what others around it have not looked at stays together. `seen`: schemas that are in it already.
    """
    if seen is not None and "unevaluatedProperties" in schema:
        return [schema]
    seen = set() if seen is None else seen
    references = document.references(schema)
    left_out = {*references, "allOf", "unevaluatedProperties", *(ANNOTATIONS - {"discriminator"})}
    own = {key: value for key, value in schema.items() if key not in left_out}
    parts: list[Any] = []
    for keyword, value in schema.items():
        inner: list[Any] = []
        if keyword in own:
            parts.append(document.made(own, schema))
            own = {}
        elif keyword in references:
            target = document.target(schema, keyword)
            if target is None:
                parts.append(document.made({keyword: value}, schema))
            else:
                inner = [target]
        elif keyword == "allOf":
            inner = value
        for part in inner:
            if not isinstance(part, dict):
                parts.append(part)
            elif id(part) not in seen:
                seen.add(id(part))
                parts += parts_of(document, part, seen=seen)
    return parts
