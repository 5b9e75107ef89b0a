"""Whether a schema is one, and whether a value fits it: all that it says, also what no mask could hold.

Callers of a server choose the schemas: nothing that one names is fetched, no pattern runs for longer than `MAX_SECONDS`, and no
check as a whole (alternatives in alternatives, repetitions that are looked for) takes more than `MAX_WORK_S`.
Formats are annotations here, as they are in JSON Schema: what masks hold of them is not checked once more.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import regex
from jsonschema import (
    Draft3Validator,
    Draft4Validator,
    Draft6Validator,
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
    ValidationError,
    validators,
)
from jsonschema.exceptions import best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from eft_engine.errors import InvalidOptionError, RequestError
from eft_engine.overdue import at_most
from eft_integrations.chat.schemas.tree import ANNOTATIONS, SchemaDocument, rebuilt

MAX_SECONDS = 0.5
"""Of the clock, for all patterns of one check."""
MAX_WORK_S = 2.0
"""Of its thread's time, for one check."""
MAX_REFERENCES = 20_000
"""That are followed in one check: definitions that name each other twice are without number."""
MAX_REASON_LEN = 300
DESCRIBING = ANNOTATIONS - {"$defs", "definitions", "$id", "$anchor", "$dynamicAnchor", "$schema"}
"""Keywords whose values may be anything: nobody reads them here."""

Errors = Iterator[ValidationError]


@dataclass
class _Allowance:
    """What one check may take: patterns until `deadline`, on the clock of `time.monotonic`, and so many more references."""

    deadline: float
    references: int = MAX_REFERENCES


class _OutOfBoundsError(Exception):
    """A check took too long."""


_allowance: ContextVar[_Allowance] = ContextVar("allowance")


def checked_schema(schema: object, *, of: str = "the schema") -> str:
    """A schema as JSON text.

    Raises:
        InvalidOptionError: it is no JSON schema; says whose it is, where and why.

    >>> checked_schema({"type": 5}, of="tool add")
    Traceback (most recent call last):
    eft_engine.errors.InvalidOptionError: tool add: no JSON schema, at $.type: 5 is not valid under any of the given schemas
    """
    try:
        text = json.dumps(dict(schema) if isinstance(schema, Mapping) else schema, ensure_ascii=False)
        reason = _fault_of_schema(text)
    except (TypeError, ValueError) as error:
        reason = f"it is not JSON: {error}"
    except RecursionError:
        reason = "it is nested too deeply"
    if reason is not None:
        raise InvalidOptionError(f"{of}: no JSON schema, {reason}", option=of, value=schema)
    return text


def fault_of(value: object, schema: object) -> str | None:
    """Why a JSON value does not fit a schema, with the place in the value; None where it fits.

    Raises:
        InvalidOptionError: see `checked_schema`.

    >>> fault_of({"a": [1, 1]}, {"properties": {"a": {"uniqueItems": True}}})
    '$.a: [1, 1] has non-unique elements'
    """
    checker = _checker(checked_schema(schema))
    token = _allowance.set(_Allowance(time.monotonic() + MAX_SECONDS))
    try:
        with at_most(MAX_WORK_S, _took_too_long):
            error = best_match(checker.of(value).iter_errors(value))
    except (_OutOfBoundsError, RequestError) as reason:
        return str(reason)
    except (RecursionError, Unresolvable) as reason:
        return f"it cannot be checked: {reason}"
    finally:
        _allowance.reset(token)
    return None if error is None else f"{error.json_path}: {error.message}"[:MAX_REASON_LEN]


def _took_too_long() -> RequestError:
    return RequestError(f"it was not decided within {MAX_WORK_S} s of work")


@functools.lru_cache(maxsize=512)
def _fault_of_schema(text: str) -> str | None:
    error = best_match(Draft202012Validator(Draft202012Validator.META_SCHEMA).iter_errors(_modern(json.loads(text))))
    return None if error is None else f"at {error.json_path}: {error.message}"[:MAX_REASON_LEN]


def _modern(schema: object) -> object:
    """What older drafts say in another way, as the latest knows it, and without annotations."""
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key not in DESCRIBING}
    if isinstance(kept.get("items"), list):
        kept["prefixItems"] = kept.pop("items")
    for exclusive in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(kept.get(exclusive), bool):
            del kept[exclusive]
    if "#" in str(kept.get("$id", "")):
        del kept["$id"]
    return rebuilt(kept, _modern)


# ---- patterns ------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> tuple[regex.Pattern[str], ...]:
    """A pattern as it is read with Unicode's letters and digits and with ASCII's: who writes schemas means either. Nothing where it
    cannot be read here.
    """
    try:
        return regex.compile(pattern), regex.compile(pattern, regex.ASCII)
    except (regex.error, OverflowError, RecursionError):
        return ()


def _matches(pattern: str, text: str) -> bool:
    readings = _compiled(pattern)
    try:
        return not readings or any(own.search(text, timeout=_seconds_left(), concurrent=True) for own in readings)
    except TimeoutError as error:
        raise _OutOfBoundsError(f"the pattern {pattern[:100]!r} was not decided within {MAX_SECONDS} s") from error


def _seconds_left() -> float:
    if (seconds := _allowance.get().deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return seconds


def _pattern(validator: Any, pattern: str, instance: object, schema: object) -> Errors:
    if isinstance(instance, str) and not _matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _multiple_of(validator: Any, step: float, instance: object, schema: object) -> Errors:
    """In decimal: 0.07 is a multiple of 0.01, which floats deny."""
    if not isinstance(instance, int | float) or isinstance(instance, bool):
        return
    if not math.isfinite(instance) or Fraction(repr(instance)) % Fraction(repr(step)):
        yield ValidationError(f"{instance!r} is not a multiple of {step!r}")


def _ref(validator: Any, name: str, instance: object, schema: object) -> Errors:
    _allowance.get().references -= 1
    if _allowance.get().references < 0:
        raise _OutOfBoundsError(f"it was not decided within {MAX_REFERENCES} references of the schema")
    yield from Draft202012Validator.VALIDATORS["$ref"](validator, name, instance, schema) or ()


# ---- dialects ------------------------------------------------------------------------------------------------------------


def _items(validator: Any, items: object, instance: object, schema: Any) -> Errors:
    own = Draft7Validator if isinstance(items, list) else Draft202012Validator
    yield from own.VALIDATORS["items"](validator, items, instance, schema) or ()


def _bound(keyword: str, exclusive: str) -> dict[str, Any]:
    """A bound that `true` beside it excludes, as in draft 4, or that another number does, as in later ones."""
    including, excluding = Draft202012Validator.VALIDATORS[keyword], Draft202012Validator.VALIDATORS[exclusive]

    def bound(validator: Any, value: object, instance: object, schema: Any) -> Errors:
        check = excluding if schema.get(exclusive) is True else including
        yield from check(validator, value, instance, schema) or ()

    def exclusive_bound(validator: Any, value: object, instance: object, schema: Any) -> Errors:
        if not isinstance(value, bool):
            yield from excluding(validator, value, instance, schema) or ()

    return {keyword: bound, exclusive: exclusive_bound}


OWN = {"pattern": _pattern, "multipleOf": _multiple_of, "$ref": _ref}
OLD_WORDS = {
    **_bound("minimum", "exclusiveMinimum"),
    **_bound("maximum", "exclusiveMaximum"),
    **{keyword: Draft7Validator.VALIDATORS[keyword] for keyword in ("additionalItems", "dependencies")},
    "items": _items,
}
"""What the latest draft no longer says, for schemas that do not say which draft they are of."""

DIALECTS = {
    own.META_SCHEMA.get("$id", own.META_SCHEMA.get("id", "")).rstrip("#"): validators.extend(own, OWN)
    for own in (Draft3Validator, Draft4Validator, Draft6Validator, Draft7Validator, Draft201909Validator)
}
LATEST = validators.extend(Draft202012Validator, {**OWN, **OLD_WORDS})


class _Checker:
    """Checks values against one schema: without references that lead nowhere."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._has_patterns = False
        if isinstance(schema, dict):
            document = SchemaDocument(schema)
            lost = [node for node in document.nodes() if "$ref" in node and document.target(node) is None]
            for node in lost:
                del node["$ref"]
            self._has_patterns = any("patternProperties" in node for node in document.nodes())
        dialect = schema.get("$schema") if isinstance(schema, dict) else None
        self._kind = DIALECTS.get(str(dialect).rstrip("#"), LATEST)
        self._validator = self._kind(schema, registry=Registry())

    def of(self, value: object) -> Any:
        """What checks this value."""
        if not self._has_patterns:
            return self._validator
        names = sorted(_names(value))
        return self._kind(_with_names(self._schema, names), registry=Registry())


def _names(value: object) -> set[str]:
    """Names of all objects in a value."""
    match value:
        case dict():
            return set(value).union(*(_names(own) for own in value.values()))
        case list():
            return set().union(*(_names(own) for own in value))
    return set()


def _with_names(schema: object, names: list[str]) -> Any:
    """`patternProperties` as `properties`: the library would search with the expressions themselves, without a limit of time."""
    copy = rebuilt(schema, lambda own: _with_names(own, names))
    if isinstance(copy, dict) and isinstance(patterns := copy.pop("patternProperties", None), dict):
        properties = dict(copy.get("properties") or {})
        for name in names:
            said = [own for pattern, own in patterns.items() if _matches(pattern, name)]
            if said:
                properties[name] = {"allOf": [*([properties[name]] if name in properties else []), *said]}
        copy["properties"] = properties
    return copy


@functools.lru_cache(maxsize=512)
def _checker(text: str) -> _Checker:
    return _Checker(json.loads(text))
