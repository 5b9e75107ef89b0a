"""JSON schemas of tools and answers, as the user gave them, and what of them a grammar holds while a model writes.

A mask cannot hold everything that a schema may say (`uniqueItems`, `not`, an unknown `format`, ...). What it cannot hold is left
open in the grammar, reported as unenforced, and checked when the answer is over (`chat.schema_check`); where the caller wants a
schema `strict`, it is refused.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eft_engine.errors import InvalidOptionError
from eft_integrations.chat.messages import Tool
from eft_integrations.chat.schema_check import checked_schema
from eft_integrations.chat.schemas.arguments import Argument, argument_forms
from eft_integrations.chat.schemas.facts import facts_of
from eft_integrations.chat.schemas.finite import without_endless
from eft_integrations.chat.schemas.holding import Holder
from eft_integrations.chat.schemas.names import NAMING, UNIONS
from eft_integrations.chat.schemas.repair import Repair, needed_by
from eft_integrations.chat.schemas.tree import REFERENCES, SchemaDocument
from eft_integrations.json_types import JsonObject

RESPONSE_FORMAT = "response_format"
"""What errors and reports call the schema of an answer."""


@dataclass(frozen=True)
class Unenforced:
    """A keyword that no mask holds: at this place of the schema (a JSON pointer)."""

    at: str
    keyword: str


@dataclass(frozen=True)
class HeldSchema:
    """`schema` is what a grammar is made of: it says as much as the user's, or less where `unenforced` says so; objects in it are
    closed. It is shared: never change it.
    """

    schema: dict[str, Any]
    unenforced: tuple[Unenforced, ...] = ()


def held(schema: object, *, arguments: bool = False) -> HeldSchema:
    """What a grammar holds of a schema.

    Args:
        schema: a JSON schema of any draft, with definitions and references inside of it, recursive ones too.
        arguments: it is the schema of a tool's arguments, which are an object in any case.

    Raises:
        InvalidOptionError: it is no JSON schema, or one that is nested too deeply to be read.

    >>> held({"properties": {"a": {"type": "array", "uniqueItems": True}}}).unenforced
    (Unenforced(at='/properties/a', keyword='uniqueItems'),)
    >>> held({"type": "object", "properties": {}}).schema
    {'type': 'object', 'properties': {}, 'additionalProperties': False}
    """
    text = checked_schema(schema)
    return _held(text, arguments)


@functools.lru_cache(maxsize=512)
def _held(text: str, arguments: bool) -> HeldSchema:
    given = json.loads(text)
    if isinstance(given, bool):
        given = {} if given else {"not": {}}
    document = SchemaDocument(_as_arguments(given) if arguments else given)
    holder = Holder(document)
    whole = without_endless(holder.hold(), holder.definitions)
    if not isinstance(whole, dict):  # no value fits
        return HeldSchema({"type": "object"} if arguments else {}, (Unenforced("", "false"),))
    Repair(whole, holder.definitions, holder.origins, holder.compositions, holder.lose).run()
    if arguments and not whole:
        whole["type"] = "object"
    needed = needed_by(whole, holder.definitions)
    return HeldSchema(
        {**whole, "$defs": needed} if needed else whole, tuple(Unenforced(at, keyword) for at, keyword in holder.lost)
    )


def arguments_of(parameters: Mapping[str, Any]) -> tuple[tuple[Argument, ...], ...]:
    """A tool's arguments one by one, with the schemas that a grammar holds of them: alternatives, of which most tools have one."""
    return _arguments(checked_schema(parameters))


@functools.lru_cache(maxsize=512)
def _arguments(text: str) -> tuple[tuple[Argument, ...], ...]:
    return argument_forms(_held(text, True).schema)


def _as_arguments(parameters: dict[str, Any]) -> dict[str, Any]:
    """A tool that says nothing of its arguments has none."""
    listed = parameters.get("type", "object")
    parameters = {**parameters, "type": "object" if isinstance(listed, list) and "object" in listed else listed}
    if not set(parameters) & {*NAMING, *REFERENCES, "allOf", *UNIONS, "const", "enum"}:
        parameters["properties"] = {}
    return parameters


@functools.lru_cache(maxsize=512)
def _takes_objects(text: str) -> bool:
    document = SchemaDocument(_as_arguments(json.loads(text)))
    return "object" in facts_of(document, document.root).kinds


def held_or_refused(schema: object, *, of: str, strict: bool, arguments: bool = False) -> HeldSchema:
    """What a grammar holds of a schema; all of it where it must.

    Args:
        schema: see `held`.
        of: whose it is, for errors: "tool <name>" or "response_format".
        strict: refuse a schema of which something is not held.
        arguments: see `held`.

    Raises:
        InvalidOptionError: it is no schema, or of arguments that are no object, or strict and not held in full; says whose it is,
            which keyword and where.
    """
    text = checked_schema(schema, of=of)
    if arguments and not _takes_objects(text):
        raise InvalidOptionError(f"{of}: arguments are an object, and none fits the schema", option=of, value=schema)
    found = held(schema, arguments=arguments)
    if strict and found.unenforced:
        first, *others = found.unenforced
        further = f" (and {len(others)} more: {', '.join(sorted({own.keyword for own in others}))})" if others else ""
        raise InvalidOptionError(
            f"{of}: the schema must be held in full (strict), but no mask holds {first.keyword!r} at {first.at or '/'!r}{further}; "
            "leave it out, or ask without strict: then the answer is checked at its end",
            option=of,
            value=first.keyword,
        )
    return found


def unenforced(
    tools: Iterable[Tool], response_schema: Mapping[str, Any] | None, *, strict_response: bool = False
) -> list[JsonObject]:
    """What masks do not hold of the schemas of a request, as an answer's metadata report it.

    Raises:
        InvalidOptionError: see `held_or_refused`.
    """
    found = [
        (
            f"tool {tool.name}",
            held_or_refused(tool.parameters, of=f"tool {tool.name}", strict=tool.strict, arguments=True),
        )
        for tool in tools
    ]
    if response_schema is not None:
        found.append((RESPONSE_FORMAT, held_or_refused(response_schema, of=RESPONSE_FORMAT, strict=strict_response)))
    return [{"of": of, "at": own.at, "keyword": own.keyword} for of, schema in found for own in schema.unenforced]
