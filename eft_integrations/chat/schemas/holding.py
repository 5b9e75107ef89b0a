"""A schema as a grammar gets it: closed where that takes nothing away, and without what a mask cannot hold.

Whatever fits the result fits the schema, except for what is reported as lost; and where some value fits the schema, some value fits
the result. To *close* an object is to allow only the names that its schema lists: a small model would write others. Where several
schemas speak of one object together (`allOf`, a `$ref` with neighbours), each of them alone stays open, and the whole is closed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from eft_integrations.chat.schemas.alternatives import are_all_apart, without_others
from eft_integrations.chat.schemas.facts import ALL_KINDS, KINDS, facts_of, types_of, values_of
from eft_integrations.chat.schemas.keywords import (
    LARGEST_STEP,
    NEVER_HELD,
    ORDER,
    SIZES,
    bounds_of,
    is_alone,
    is_too_large,
    says_nothing,
    step_of,
)
from eft_integrations.chat.schemas.names import UNIONS, Names, is_composed, names_of, parts_of
from eft_integrations.chat.schemas.strings import held_pattern, held_string, names_pattern
from eft_integrations.chat.schemas.tree import ANNOTATIONS, SchemaDocument
from eft_integrations.chat.schemas.unique import unique_lists

MOST_BRANCHES = 16
"""Alternatives up to which each is closed by itself, together with what stands around them."""
MOST_SPREAD = 256
"""Such alternatives in a whole schema; and properties of which several schemas say something."""


class Holder:
    """Makes a grammar's schema out of one document.

    `definitions`: what the schema refers to as `#/$defs/...`. `lost`: place and keyword of what is not held, in the order of
    finding. `origins`: the schemas of the document of which the parts of the result are made, by the identity of these;
    `compositions`: those that are made of several.
    """

    def __init__(self, document: SchemaDocument) -> None:
        self.definitions: dict[str, Any] = {}
        self.lost: dict[tuple[str, str], None] = {}
        self.origins: dict[int, Mapping[str, Any]] = {}
        self.compositions: set[int] = set()
        self._document = document
        self._names: dict[tuple[int, bool], str] = {}
        self._joined: dict[tuple[int, ...], dict[str, Any]] = {}
        self._num_spread = 0
        self._steps: set[int] = set()

    def hold(self) -> Any:
        """The schema as a grammar gets it, without the definitions."""
        held = self._held(self._document.root, closes=True)
        waiting: list[tuple[tuple[int, bool], str]]
        while waiting := [(key, name) for key, name in self._names.items() if name not in self.definitions]:
            for (identity, closes), name in waiting:
                self.definitions[name] = self._held(self._document.node(identity), closes=closes)
        return held

    def lose(self, schema: Mapping[str, Any], *keywords: str) -> None:
        """Note keywords of a schema of the document that are not held."""
        self.lost |= dict.fromkeys((self._document.place(schema), keyword) for keyword in keywords)

    def _made(self, of: Mapping[str, Any], **keywords: Any) -> dict[str, Any]:
        return self._document.made(keywords, of)

    def _done(self, held: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
        ordered = {keyword: held[keyword] for keyword in ORDER if keyword in held}
        self.origins[id(ordered)] = self._document.original(schema)
        return ordered

    def _held(self, schema: object, *, closes: bool) -> Any:
        """`closes`: it is no part of a composition."""
        if not isinstance(schema, dict):
            return schema
        if not facts_of(self._document, schema).kinds:  # no value fits
            return False
        if not closes or not is_composed(self._document, schema):
            return self._plain(schema, closes=closes)
        further = schema.get("unevaluatedProperties", False)
        parts = parts_of(self._document, schema)
        names = names_of(self._document, parts)
        if not names.are_listed or not names.may_close or further is True:
            return self._plain(schema, closes=False)
        composition = self._composition(schema, parts, names, further)
        self.compositions.add(id(composition))
        return composition

    # ---- one schema ----------------------------------------------------------------------------------------------------

    def _plain(self, schema: dict[str, Any], *, closes: bool) -> dict[str, Any]:
        if (lists := unique_lists(self._document, schema)) is not None:
            return self._done({"enum": lists}, schema)
        kinds = facts_of(self._document, schema).kinds
        held: dict[str, Any] = {keyword: int(schema[keyword]) for keyword in SIZES if keyword in schema}
        if "type" in schema:
            held["type"] = (
                schema["type"] if isinstance(schema["type"], str) else sorted(schema["type"], key=[*KINDS].index)
            )
        in_place: list[Any] = []
        self._numbers(schema, held)
        if "string" in kinds:
            strings, lost = held_string(schema)
            in_place += strings.pop("allOf", [])
            held |= strings
            self.lose(schema, *lost)
        self._arrays(schema, held)
        otherwise = self._objects(schema, held, kinds)
        self._close(schema, held, kinds, closes=closes)
        for keyword in ("const", "enum"):
            if keyword in schema and is_too_large(schema[keyword]):
                self.lose(schema, keyword)
            elif keyword in schema:
                held[keyword] = schema[keyword]
        for keyword, kind in NEVER_HELD.items():
            is_meant = keyword in schema and (kind in kinds or not kind) and not says_nothing(schema, keyword)
            if is_meant and keyword != otherwise:
                self.lose(schema, keyword)
        self._applicators(schema, held, in_place, closes=closes)
        return self._done(held, schema)

    def _numbers(self, schema: dict[str, Any], held: dict[str, Any]) -> None:
        bounds = bounds_of(schema)
        if "multipleOf" in bounds:
            self._steps.add(step_of(bounds["multipleOf"]))
        for keyword, value in bounds.items():
            if is_too_large(value) or (keyword == "multipleOf" and math.prod(self._steps) > LARGEST_STEP):
                self.lose(schema, keyword)
            else:
                held[keyword] = value

    def _arrays(self, schema: dict[str, Any], held: dict[str, Any]) -> None:
        """A list under `items` is what `prefixItems` was called before."""
        prefix, items = schema.get("prefixItems"), schema.get("items")
        if isinstance(items, list):
            prefix, items = items, schema.get("additionalItems")
        if prefix:
            held["prefixItems"] = [self._held(own, closes=True) for own in prefix]
        if items is None and is_alone(schema, "contains"):
            items = schema.get("unevaluatedItems")
        if items is not None:
            held["items"] = self._held(items, closes=True)

    def _objects(self, schema: dict[str, Any], held: dict[str, Any], kinds: frozenset[str]) -> str | None:
        """The keyword that is said in the words of others. What is additional depends on the patterns: both are held, or none."""
        values = schema.get("properties")
        if values is not None:
            held["properties"] = {name: self._held(own, closes=True) for name, own in values.items()}
        if "required" in schema:
            held["required"] = list(schema["required"])
        patterns = {held_pattern(name): own for name, own in (schema.get("patternProperties") or {}).items()}
        if None in patterns:
            if "object" in kinds:
                self.lose(schema, *(key for key in ("patternProperties", "additionalProperties") if key in schema))
            return None
        if patterns:
            held["patternProperties"] = {name: self._held(own, closes=True) for name, own in patterns.items()}
        if "additionalProperties" in schema:
            held["additionalProperties"] = self._held(schema["additionalProperties"], closes=True)
        others = ("properties", "patternProperties", "required", "unevaluatedProperties")
        is_map = is_alone(schema, *others) and self._map(schema, held)
        return "propertyNames" if is_map else None

    def _map(self, schema: dict[str, Any], held: dict[str, Any]) -> bool:
        """An object of any names of which `propertyNames` gives a list or a pattern: these are properties."""
        names, values = schema.get("propertyNames"), held.get("additionalProperties", True)
        if not isinstance(names, dict):
            return False
        target = self._document.last_target(names)
        listed = values_of(target)
        if listed is not None and set(target) <= {"const", "enum", "type", *ANNOTATIONS}:
            held["properties"] = {name: values for name in listed if isinstance(name, str)}
        elif (pattern := names_pattern(target)) is not None:
            held["patternProperties"] = {pattern: values}
        else:
            return False
        held["additionalProperties"] = False
        return True

    def _close(self, schema: dict[str, Any], held: dict[str, Any], kinds: frozenset[str], *, closes: bool) -> None:
        """`unevaluatedProperties` says of all names that are not listed anywhere here what `additionalProperties` would."""
        further = schema.get("unevaluatedProperties", True)
        if "additionalProperties" in schema or "additionalProperties" in held or "object" not in kinds:
            return
        names = names_of(self._document, [schema], without=schema)
        if further is not True:
            if names.is_open or names.are_conditional:
                self.lose(schema, "unevaluatedProperties")
            if not names.is_open:
                _list_all(held, names.evaluated)
                held["additionalProperties"] = self._held(further, closes=True)
        elif closes and "properties" in schema and "unevaluatedProperties" not in schema and names.may_close:
            _list_all(held, names.listed)
            held["additionalProperties"] = False
            if kinds == ALL_KINDS:
                held["type"] = "object"
        if (
            held.get("minProperties", 0) - len(held.get("required", ())) > 1
            and held.get("additionalProperties") is not False
        ):
            self.lose(schema, "minProperties")  # a name may be written twice where names are not listed

    # ---- what stands in place ------------------------------------------------------------------------------------------

    def _applicators(self, schema: dict[str, Any], held: dict[str, Any], in_place: list[Any], *, closes: bool) -> None:
        for keyword in self._document.references(schema):
            target = self._document.target(schema, keyword)
            if target is None:
                self.lose(schema, keyword)
            elif isinstance(target, dict):
                reference = self._done({"$ref": f"#/$defs/{self._definition(target, closes=closes)}"}, schema)
                in_place.append(reference)
            else:
                in_place.append(target)
        in_place += [self._held(own, closes=closes) for own in schema.get("allOf") or ()]
        for keyword in UNIONS:
            if keyword in schema:
                union = self._union(schema, keyword, [[branch] for branch in schema[keyword]], closes=closes)
                in_place.append({"anyOf": union})
        for keyword in ("$ref", "anyOf"):
            if len(found := [own for own in in_place if isinstance(own, dict) and set(own) == {keyword}]) == 1:
                held |= found[0]
                in_place = [own for own in in_place if own is not found[0]]
        if in_place:
            held["allOf"] = in_place

    def _definition(self, target: dict[str, Any], *, closes: bool) -> str:
        """The name of a definition; one that is a part of a composition has an open form beside the closed one."""
        target = self._document.last_target(target)
        key = (id(target), closes)
        if key not in self._names:
            last = self._document.place(target).rpartition("/")[2] or "root"
            stem = "".join(char if char.isalnum() and char.isascii() else "_" for char in last) + (
                "" if closes else "_open"
            )
            taken = set(self._names.values())
            forms = (f"{stem}_{count}" if count else stem for count in range(len(taken) + 1))
            self._names[key] = next(name for name in forms if name not in taken)
        return self._names[key]

    def _union(
        self, schema: dict[str, Any], keyword: str, branches: list[list[Any]], *, closes: bool, further: Any = None
    ) -> list[Any]:
        """Alternatives, each of which is several schemas at once. `oneOf` is held where no value fits two of them.

        A `discriminator` names a property that every alternative must have: without it nobody could tell which one it is.
        """
        said = schema.get("discriminator")
        tag = said.get("propertyName") if isinstance(said, dict) else None
        if all(tag in facts_of(self._document, *branch).fields for branch in branches):
            branches = [[*branch, self._made(schema, required=[tag])] for branch in branches]
        elif keyword == "oneOf":
            branches = without_others(self._document, schema, branches)
        beside = {} if further is None else {"unevaluatedProperties": further}
        joined = [own[0] if len(own) == 1 else self._made(schema, allOf=own, **beside) for own in branches]
        if keyword == "oneOf" and not are_all_apart(self._document, joined, closes=closes):
            self.lose(schema, keyword)
        return [self._held(own, closes=closes) for own in joined]

    # ---- compositions --------------------------------------------------------------------------------------------------

    def _composition(self, schema: dict[str, Any], parts: list[Any], names: Names, further: Any) -> Any:
        """Objects that several schemas speak of: their properties together. `further`: what other properties may be."""
        unions = [(part, keyword) for part in parts if isinstance(part, dict) for keyword in UNIONS if keyword in part]
        if unions and self._may_spread(math.prod(len(part[keyword]) for part, keyword in unions)):
            part, keyword = unions[0]
            rest = self._made(
                part, **{key: value for key, value in part.items() if key not in (keyword, "discriminator")}
            )
            around = [rest if own is part else own for own in parts]
            branches = [[*around, branch] for branch in part[keyword]]
            return self._done({"anyOf": self._union(part, keyword, branches, closes=True, further=further)}, schema)
        if further is not False and names.are_conditional:
            self.lose(schema, "unevaluatedProperties")
        kinds = facts_of(self._document, *parts).kinds
        types = ["object"] if kinds == ALL_KINDS else types_of(kinds)
        relative = {"additionalProperties", "unevaluatedProperties"}
        flat = [part for part in parts if isinstance(part, dict) and not relative & set(part)]
        listed = names.evaluated if "unevaluatedProperties" in schema else names.listed
        properties = {name: self._both(name, flat, schema) for name in listed}
        required = dict.fromkeys(name for part in flat for name in part.get("required") or ())
        held = {
            "type": types[0] if len(types) == 1 else types,
            "properties": properties,
            "additionalProperties": self._held(further, closes=True),
            "required": list(required),
        }
        rests = [self._rest(part) if any(part is own for own in flat) else part for part in parts]
        in_place = [self._held(own, closes=False) for own in rests]
        in_place = [own for own in in_place if own is not True and own != {}]
        if in_place:
            held["allOf"] = in_place
        return self._done(held, schema)

    def _may_spread(self, count: int) -> bool:
        self._num_spread += count
        return count <= MOST_BRANCHES and self._num_spread <= MOST_SPREAD

    def _rest(self, part: dict[str, Any]) -> dict[str, Any]:
        """A part without what was merged."""
        return self._made(
            part, **{key: value for key, value in part.items() if key not in ("type", "properties", "required")}
        )

    def _both(self, name: str, parts: list[dict[str, Any]], schema: dict[str, Any]) -> Any:
        """What several parts say of one property. Recursive schemas may say it of their own kind, so it is a definition."""
        said = [part["properties"][name] for part in parts if name in (part.get("properties") or {})]
        if False in said:
            return False
        schemas = {
            id(target): own for own in said if isinstance(own, dict) and (target := self._document.last_target(own))
        }
        if len(schemas) <= 1:
            return self._held(next(iter(schemas.values()), True), closes=True)
        key = tuple(schemas)
        if key not in self._joined:
            self._joined[key] = self._made(schema, allOf=list(schemas.values()))
        if len(self._joined) > MOST_SPREAD:
            return {"allOf": [self._held(own, closes=False) for own in schemas.values()]}
        return {"$ref": f"#/$defs/{self._definition(self._joined[key], closes=True)}"}


def _list_all(held: dict[str, Any], names: Iterable[str]) -> None:
    held["properties"] = {name: held.get("properties", {}).get(name, True) for name in names}
