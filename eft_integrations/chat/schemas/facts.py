"""What can be said of a schema without a value: which types fit it, and whether two schemas have no value in common."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eft_integrations.chat.schemas.tree import SchemaDocument

KINDS: dict[str, frozenset[str]] = {
    **{name: frozenset({name}) for name in ("null", "boolean", "integer", "string", "array", "object")},
    "number": frozenset({"integer", "fraction"}),
}
ALL_KINDS = frozenset().union(*KINDS.values())


def kind_of(value: object) -> str:
    """The type of a JSON value; a number is an integer or a fraction."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "fraction"
        case str():
            return "string"
        case Mapping():
            return "object"
    return "array"


def canonical(value: object) -> str:
    """A JSON value as text that is the same for equal values: 1 and 1.0 are equal, 1 and true are not."""

    def plain(own: object) -> object:
        match own:
            case float() if own.is_integer():
                return int(own)
            case Mapping():
                return {str(key): plain(item) for key, item in own.items()}
            case list() | tuple():
                return [plain(item) for item in own]
        return own

    return json.dumps(plain(value), sort_keys=True)


def values_of(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that `const` and `enum` of a schema list; None where neither is there."""
    if "const" in schema:
        return [schema["const"]]
    listed = schema.get("enum")
    return list(listed) if isinstance(listed, list | tuple) else None


@dataclass(frozen=True)
class Facts:
    """What is certain of all values that fit some schemas at once.

    `kinds`: types that may occur; `values`: the only values, as `canonical` text, None where there are others; `required`: names
    that objects have; `fields`: schemas of named properties.
    """

    kinds: frozenset[str] = ALL_KINDS
    values: frozenset[str] | None = None
    required: frozenset[str] = frozenset()
    fields: Mapping[str, tuple[object, ...]] = field(default_factory=dict)

    def __and__(self, other: Facts) -> Facts:
        """What is certain of values that fit both."""
        fields = {name: _all_of(self.fields.get(name, ()), own) for name, own in other.fields.items()}
        values = [own for own in (self.values, other.values) if own is not None]
        return Facts(
            self.kinds & other.kinds,
            frozenset.intersection(*values) if values else None,
            self.required | other.required,
            {**self.fields, **fields},
        )

    def __or__(self, other: Facts) -> Facts:
        """What is certain of values that fit one of the two."""
        values = None if self.values is None or other.values is None else self.values | other.values
        return Facts(self.kinds | other.kinds, values, self.required & other.required)


def _all_of(first: tuple[object, ...], second: tuple[object, ...]) -> tuple[object, ...]:
    """Schemas of both, each of them once."""
    return (*first, *(own for own in second if not any(own is other for other in first)))


NOTHING = Facts(kinds=frozenset(), values=frozenset())


def facts_of(document: SchemaDocument, *schemas: object) -> Facts:
    """What is certain of values that fit all of the schemas."""
    facts = Facts()
    for schema in schemas:
        if schema is False:
            return NOTHING
        if isinstance(schema, dict):
            facts &= document.remembered("facts", schema, lambda own: _facts_of(document, own))
    return facts


def _facts_of(document: SchemaDocument, schema: Mapping[str, Any]) -> Facts:
    facts = _own_facts(schema)
    for keyword in document.references(schema):
        facts &= facts_of(document, document.target(schema, keyword))
    facts &= facts_of(document, *_listed(schema, "allOf"))
    for keyword in ("anyOf", "oneOf"):
        if branches := _listed(schema, keyword):
            either = NOTHING
            for branch in branches:
                either |= facts_of(document, branch)
            facts &= either
    return facts


def _listed(schema: Mapping[str, Any], keyword: str) -> list[object]:
    branches = schema.get(keyword)
    return list(branches) if isinstance(branches, list | tuple) else []


def _own_facts(schema: Mapping[str, Any]) -> Facts:
    kinds, named = ALL_KINDS, schema.get("type")
    if named is not None:
        kinds = frozenset().union(
            *(KINDS.get(name, ALL_KINDS) for name in ([named] if isinstance(named, str) else named))
        )
    values = values_of(schema)
    if values is not None:
        kinds &= {kind_of(value) for value in values}
    required = frozenset(schema.get("required") or ())
    properties = schema.get("properties") or {}
    return Facts(
        kinds,
        None if values is None else frozenset(canonical(value) for value in values),
        required,
        {name: (own,) for name, own in properties.items()},
    )


def types_of(kinds: frozenset[str]) -> list[str]:
    """Types by name, as `type` lists them.

    >>> types_of(frozenset({"null", "integer", "fraction"}))
    ['null', 'number']
    """
    names = [name for name in KINDS if name in kinds and name != "integer"]
    numbers = ["number"] if "fraction" in kinds else ["integer"] if "integer" in kinds else []
    return names + numbers


def are_apart(document: SchemaDocument, first: Facts, second: Facts) -> bool:
    """Whether it is certain that no value has both: no type or value in common, or a property that both cannot have."""
    if first.values is not None and second.values is not None:
        return not first.values & second.values
    common = first.kinds & second.kinds
    if common - {"object"}:
        return False
    if not common:
        return True
    for name in first.required | second.required:
        schemas = [*first.fields.get(name, ()), *second.fields.get(name, ())]
        own = facts_of(document, *schemas)
        if not own.kinds or own.values == frozenset():
            return True
    return False
