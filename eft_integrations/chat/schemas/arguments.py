"""A tool's arguments one by one, for notations that do not write them as one JSON object."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_FORMS = 32
"""Alternatives of a tool's arguments that are told apart; further ones are not written."""


@dataclass(frozen=True)
class Argument:
    """One argument: `schema` is a grammar's, with the definitions that it needs."""

    name: str
    schema: Any
    is_required: bool


@dataclass(frozen=True)
class _Form:
    """One way to have arguments. `others`: the schema of those that are not listed."""

    properties: Mapping[str, Any]
    required: tuple[str, ...] = ()
    others: Any = True

    def __and__(self, other: _Form) -> _Form:
        names = dict.fromkeys((*self.properties, *other.properties))
        properties = {
            name: _both(self.properties.get(name, self.others), other.properties.get(name, other.others))
            for name in names
        }
        required = dict.fromkeys((*self.required, *other.required))
        return _Form(properties, tuple(required), _both(self.others, other.others))


def argument_forms(held_schema: Mapping[str, Any]) -> tuple[tuple[Argument, ...], ...]:
    """The alternatives of a tool's arguments (most tools have one), the required ones first.

    Args:
        held_schema: what a grammar holds of the tool's parameters.

    >>> schema = {"properties": {"a": {}, "b": {"$ref": "#/$defs/B"}}, "required": ["b"], "$defs": {"B": {"enum": [1]}}}
    >>> [(own.name, own.schema["enum"]) for own in argument_forms(schema)[0] if own.is_required]
    [('b', [1])]
    """
    definitions = held_schema.get("$defs", {})

    def whole(schema: Any) -> Any:
        seen = set()
        while isinstance(schema, dict) and set(schema) == {"$ref"} and schema["$ref"] not in seen:
            seen.add(schema["$ref"])
            schema = _target(schema, definitions)
        if not isinstance(schema, dict):
            return {} if schema else False
        return {**schema, "$defs": definitions} if definitions else schema

    forms = []
    for form in itertools.islice(_forms(held_schema, definitions, ()), MAX_FORMS):
        names = {name: form.properties.get(name, form.others) for name in (*form.properties, *form.required)}
        if any(names[name] is False for name in form.required):
            continue
        listed = [
            Argument(name, whole(schema), name in form.required)
            for name, schema in names.items()
            if schema is not False
        ]
        forms.append(tuple(sorted(listed, key=lambda argument: not argument.is_required)))
    return tuple(form for index, form in enumerate(forms) if form not in forms[:index])


def _forms(schema: Any, definitions: Mapping[str, Any], way: tuple[str, ...]) -> list[_Form]:
    if not isinstance(schema, Mapping):
        return [_Form({})] if schema else []
    found = [
        _Form(schema.get("properties", {}), tuple(schema.get("required", ())), schema.get("additionalProperties", True))
    ]
    further: list[list[_Form]] = []
    if "$ref" in schema and schema["$ref"] not in way:
        further.append(_forms(_target(schema, definitions), definitions, (*way, schema["$ref"])))
    further += [_forms(own, definitions, way) for own in schema.get("allOf", ())]
    if "anyOf" in schema:
        further.append([form for own in schema["anyOf"] for form in _forms(own, definitions, way)])
    for forms in further:
        found = [first & second for first, second in itertools.islice(itertools.product(found, forms), MAX_FORMS)]
    return found


def _both(first: Any, second: Any) -> Any:
    if first is False or second is False:
        return False
    if first in (True, {}) or first == second:
        return second
    return first if second in (True, {}) else {"allOf": [first, second]}


def _target(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    return definitions[str(schema["$ref"]).rpartition("/")[2]]
