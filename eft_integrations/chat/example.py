"""A value that fits a JSON schema, without a model: for tests of what is asked for values.

First values are made from what a grammar holds of the schema, the simplest first: the first alternative, what is required, one item
of a list. Where these do not fit (the schema says what no mask can hold), others follow, with all properties, drawn at random, and
at last sentences of the schema's grammar. Each is checked against the schema as it was given; none is handed out that breaks it.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eft_engine.errors import InvalidGrammarError
from eft_integrations.chat.schema import held
from eft_integrations.chat.schema_check import fault_of
from eft_integrations.chat.schemas.loosened import in_other_words
from eft_integrations.chat.schemas.numbers import NoValueError, number
from eft_integrations.chat.schemas.sentence import sentence
from eft_integrations.chat.schemas.strings import FORMATS, whole
from eft_integrations.chat.schemas.tree import ANNOTATIONS
from eft_integrations.chat.schemas.words import texts_of_format, word
from eft_integrations.json_types import Json

NUM_DRAWN = 24
"""Values that are drawn at random where the plain ones do not fit."""
NUM_SENTENCES = 48
"""Sentences of the grammar that are tried at last."""
MOST_ROUNDS = 3
"""How often a definition may stand inside of itself where it must; from the second time on only what is required is made."""
MAX_SECONDS = 5.0
"""After which no further value is tried: only schemas that are slow to check take so long."""
MOST_PARTS = 20_000
"""Of one value, alternatives that led nowhere included; and characters of a text that must be long."""

KINDS_BY_KEYWORD = {
    "object": ("properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
"""What a schema without a type speaks of."""
FORMATS_BY_PATTERN: Mapping[object, str] = {whole(expression): name for name, expression in FORMATS.items()}
"""A grammar has the pattern of most formats."""
IN_PLACE = frozenset({"$ref", "anyOf", "allOf"})


def example_of(schema: object, *, arguments: bool = False, seed: int = 0) -> Json:
    """A value that fits a schema: the same for the same schema and seed.

    Args:
        schema: a JSON schema, as a user gives it.
        arguments: it is the schema of a tool's arguments, which are an object in any case.
        seed: another number gives other values where the schema allows others.

    Raises:
        InvalidOptionError: it is no JSON schema.
        InvalidGrammarError: no value was found that fits it.

    >>> example_of({"type": "object", "properties": {"a": {"enum": [3, 4]}, "b": {"type": "string"}}, "required": ["a"]})
    {'a': 3}
    >>> example_of({"type": "array", "items": {"type": "integer"}, "minItems": 2, "uniqueItems": True}, seed=1)
    [1, 2]
    """
    faults: list[str] = []
    start = time.monotonic()
    for value in _values(schema, seed, arguments=arguments):
        if time.monotonic() - start > MAX_SECONDS:
            break
        if arguments and not isinstance(value, dict):
            continue
        fault = fault_of(value, schema)
        if fault is None:
            return value
        faults.append(f"{json.dumps(value, ensure_ascii=False)[:200]}: {fault}")
    reason = f"; the first that was tried was {faults[0]}" if faults else ""
    said = json.dumps(schema, ensure_ascii=False, default=str)[:300]
    raise InvalidGrammarError(f"no value was found that fits the schema {said}{reason}; give the answer yourself")


def _values(schema: object, seed: int, *, arguments: bool) -> Iterator[Json]:
    whole = held(schema, arguments=arguments).schema
    loosened = held(in_other_words(schema), arguments=arguments).schema
    for maker in (_Maker(whole, seed), _Maker(whole, seed, takes_all=True), _Maker(loosened, seed)):
        yield from maker.values()
    for count in range(NUM_DRAWN):
        yield from _Maker(loosened if count % 2 else whole, seed, draw=random.Random(f"{seed} {count}")).values()
    draw = random.Random(f"{seed} sentences")
    for _ in range(NUM_SENTENCES):
        text = sentence(loosened, draw)
        if text is not None:
            yield json.loads(text)


class _Maker:
    """Makes one value of a schema as a grammar has it.

    Args:
        whole: the schema, with its definitions.
        seed: which of several values; items of a list and whatever must differ have the next ones.
        takes_all: what may be left out is made too.
        draw: decides at random instead.
    """

    def __init__(
        self, whole: dict[str, Any], seed: int, *, takes_all: bool = False, draw: random.Random | None = None
    ) -> None:
        self._whole = whole
        self._definitions: Mapping[str, Any] = whole.get("$defs", {})
        self._seed = seed
        self._takes_all = takes_all
        self._draw = draw
        self._parts = 0

    def values(self) -> Iterator[Json]:
        """The value; none where this way leads to none."""
        try:
            yield self._make(self._whole, self._seed, ())
        except (NoValueError, RecursionError):
            return

    def _make(self, schema: object, turn: int, way: tuple[str, ...]) -> Json:
        """A value. `turn`: which of them, for values that must differ; `way`: definitions around this one."""
        self._parts += 1
        if schema is False or self._parts > MOST_PARTS:
            raise NoValueError
        schema = schema if isinstance(schema, Mapping) else {}
        if any(schema.get(keyword, 0) > MOST_PARTS for keyword in ("minLength", "minItems", "minProperties")):
            raise NoValueError
        turn = turn if self._draw is None else self._draw.randrange(100)
        if "const" in schema or "enum" in schema:
            return self._listed(schema, turn)
        if set(schema) & IN_PLACE:
            return self._in_place(schema, turn, way)
        return self._of_kind(self._kind(schema, turn), schema, turn, way)

    def _kind(self, schema: Mapping[str, Any], turn: int) -> str:
        said = schema.get("type")
        if isinstance(said, str):
            return said
        if said:
            kinds = sorted(said, key=lambda kind: kind == "null")
            return str(kinds[turn % len(kinds)] if self._draw is not None else kinds[0])
        spoken_of = [kind for kind, own in KINDS_BY_KEYWORD.items() if set(own) & set(schema)]
        if self._draw is not None:
            spoken_of = [*spoken_of, *KINDS_BY_KEYWORD]
            return spoken_of[turn % len(spoken_of)]
        return next(iter(spoken_of), "string")

    def _of_kind(self, kind: str, schema: Mapping[str, Any], turn: int, way: tuple[str, ...]) -> Json:
        match kind:
            case "object":
                return self._object(schema, turn, way)
            case "array":
                return self._array(schema, turn, way)
            case "string":
                return self._text(schema, turn)
            case "integer" | "number":
                return number(schema, turn, is_whole=kind == "integer")
            case "boolean":
                return turn % 2 == 1
        return None

    def _fits(self, value: Json, schema: Mapping[str, Any]) -> bool:
        return fault_of(value, {**schema, "$defs": self._definitions}) is None

    def _listed(self, schema: Mapping[str, Any], turn: int) -> Json:
        listed: Sequence[Json] = [schema["const"]] if "const" in schema else schema["enum"]
        start = turn % max(len(listed), 1)
        for value in (*listed[start:], *listed[:start]):
            if set(schema) <= {"const", "enum"} or self._fits(value, schema):
                return value
        raise NoValueError

    # ---- what stands in place --------------------------------------------------------------------------------------------

    def _in_place(self, schema: Mapping[str, Any], turn: int, way: tuple[str, ...]) -> Json:
        """What several schemas say of one value: what one of them has, if it fits the others too."""
        own = {key: value for key, value in schema.items() if key not in IN_PLACE and key not in ANNOTATIONS}
        parts: list[Any] = [own] if own else []
        parts += [{keyword: schema[keyword]} for keyword in ("$ref", "anyOf") if keyword in schema]
        parts += [part for part in schema.get("allOf", ()) if part is not True and part != {}]
        match parts:
            case []:
                return self._make({}, turn, way)
            case [{"$ref": str(name)} as part] if len(part) == 1:
                return self._named(name.rpartition("/")[2], turn, way)
            case [{"anyOf": branches} as part] if len(part) == 1:
                return self._first(branches, turn, way)
            case [part]:
                return self._make(part, turn, way)
        together: dict[str, Json] = {}
        for part in parts:
            value = self._make(part, turn, way)
            if self._fits(value, schema):
                return value
            if isinstance(value, dict):
                together |= value
        if self._fits(together, schema):
            return together
        return self._sentence(schema, turn)

    def _named(self, name: str, turn: int, way: tuple[str, ...]) -> Json:
        if way.count(name) > MOST_ROUNDS:
            raise NoValueError
        return self._make(self._definitions[name], turn, (*way, name))

    def _first(self, branches: Sequence[Any], turn: int, way: tuple[str, ...]) -> Json:
        """The first alternative that leads to a value. Inside of itself a definition ends as soon as it can."""
        start = turn if self._draw is not None else 0 if _is_or_null(branches) else self._seed
        ordered = [branches[(start + offset) % len(branches)] for offset in range(len(branches))]
        if self._is_inside_itself(way):
            ordered.sort(key=lambda branch: isinstance(branch, Mapping) and "$ref" in branch)
        for branch in ordered:
            try:
                return self._make(branch, turn, way)
            except NoValueError:
                continue
        raise NoValueError

    def _is_inside_itself(self, way: tuple[str, ...]) -> bool:
        return len(set(way)) < len(way)

    def _sentence(self, schema: Mapping[str, Any], turn: int) -> Json:
        draw = self._draw or random.Random(f"{turn} {self._seed}")
        for _ in range(8):
            text = sentence({**schema, "$defs": self._definitions}, draw)
            if text is not None:
                found: Json = json.loads(text)
                return found
        raise NoValueError

    # ---- objects and lists -----------------------------------------------------------------------------------------------

    def _object(self, schema: Mapping[str, Any], turn: int, way: tuple[str, ...]) -> dict[str, Json]:
        properties: Mapping[str, Any] = schema.get("properties", {})
        required: Sequence[str] = schema.get("required", ())
        most = schema.get("maxProperties", math.inf)
        other = schema.get("additionalProperties", True)
        made: dict[str, Json] = {}
        for name in (*properties, *(name for name in required if name not in properties)):
            if name in required:
                made[name] = self._make(properties.get(name, other), turn, way)
        for name in (name for name in properties if name not in required):
            is_needed = len(made) < schema.get("minProperties", 0)
            if is_needed or (self._wants_more(way) and len(made) < most):
                self._try(made, name, properties[name], turn, way)
        names = self._other_names(schema, turn)
        is_map = not properties and (isinstance(other, Mapping) or bool(schema.get("patternProperties")))
        fewest = max(schema.get("minProperties", 0), 1 if is_map and not self._is_inside_itself(way) and most else 0)
        for _ in range(2 * int(fewest)):
            if len(made) >= fewest:
                break
            name, values = next(names)
            self._try(made, name, values, turn + len(made), way)
        return made

    def _wants_more(self, way: tuple[str, ...]) -> bool:
        if self._is_inside_itself(way):
            return False
        return self._takes_all if self._draw is None else self._draw.random() < 0.5

    def _try(self, made: dict[str, Json], name: str, schema: Any, turn: int, way: tuple[str, ...]) -> None:
        """One that may be left out, where it leads to no value."""
        try:
            made[name] = self._make(schema, turn, way)
        except NoValueError:
            return

    def _other_names(self, schema: Mapping[str, Any], turn: int) -> Iterator[tuple[str, Any]]:
        """Names that are not listed, and what their values are."""
        for offset in range(MOST_PARTS):
            for pattern, values in schema.get("patternProperties", {}).items():
                if values is not False:
                    yield str(self._text({"pattern": pattern}, turn + offset)), values
            if schema.get("additionalProperties", True) is not False:
                yield word(turn + offset), schema.get("additionalProperties", True)
            elif not schema.get("patternProperties"):
                raise NoValueError

    def _array(self, schema: Mapping[str, Any], turn: int, way: tuple[str, ...]) -> list[Json]:
        prefix: Sequence[Any] = schema.get("prefixItems", ())
        fewest, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
        items = schema.get("items", True)
        wanted = max(fewest, len(prefix)) if prefix or "items" not in schema else max(fewest, 1)
        if self._draw is not None:
            wanted += self._draw.randrange(3)
        wanted = fewest if self._is_inside_itself(way) or (items is False and not prefix) else min(wanted, most)
        made: list[Json] = []
        for index in range(int(wanted)):
            try:
                made.append(self._make(prefix[index] if index < len(prefix) else items, turn + index, way))
            except NoValueError:
                if index < fewest:
                    raise
                break
        return made

    # ---- texts and numbers -----------------------------------------------------------------------------------------------

    def _text(self, schema: Mapping[str, Any], turn: int) -> str:
        fewest, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        name = schema.get("format") or FORMATS_BY_PATTERN.get(schema.get("pattern"))
        for text in texts_of_format(name, turn) if name else texts_of_format(None, turn, fewest, most):
            if self._fits(text, schema):
                return text
        return str(self._sentence({"type": "string", **schema}, turn))


def _is_or_null(branches: Sequence[Any]) -> bool:
    """Whether one alternative and none: the value is there then."""
    return len(branches) == 2 and {"type": "null"} in branches
