"""What all request bodies have in common: null is nothing, names that are not known are refused or told of, JSON is bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, PrivateAttr, model_validator

from eft_integrations.server.bodies.levels import levels
from eft_integrations.server.bodies.unused_fields import MAX_NAMED, OWN, refused, unused
from eft_integrations.server.seen.records import PROMPT_FIELD

MAX_DEPTH = 64
"""Levels of nesting in schemas and other free JSON."""


def _plain_json(value: dict[str, object]) -> dict[str, object]:
    """Free JSON without NaN that is not nested beyond reason."""
    for depth, _ in enumerate(levels(value), 1):
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    json.dumps(value, allow_nan=False)
    return value


FreeJson = Annotated[dict[str, object], AfterValidator(_plain_json)]


class Part(BaseModel):
    """Base of bodies and of what they hold. A field that need not be there may be null, which says nothing."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _null_is_nothing(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        return {
            name: value
            for name, value in values.items()
            if value is not None or (name in cls.model_fields and cls.model_fields[name].is_required())
        }


class Body(Part):
    """Base of all request bodies.

    `QUIET`: names that this route has no use for and that cannot change what it answers, besides those of everywhere.
    """

    QUIET: ClassVar[frozenset[str]] = frozenset()

    _ignored: list[str] = PrivateAttr(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _refuse_half_characters(cls, values: object) -> object:
        """JSON can escape one half of a surrogate pair; no tokenizer can read that."""
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text that is not Unicode: {error.reason}") from None
        return values

    @model_validator(mode="after")
    def _look_at_what_is_not_used(self) -> Body:
        extra = {name: value for name, value in (self.model_extra or {}).items() if name not in self.QUIET}
        if (reason := refused(extra, [*type(self).model_fields])) is not None:
            raise ValueError(reason)
        names = sorted(dict.fromkeys(name[:100] for name in (*unused(extra), *self.unused_inside())))
        more = len(names) - MAX_NAMED
        self._ignored = names if more <= 0 else [*names[:MAX_NAMED], f"{more} more"]
        return self

    def unused_inside(self) -> Iterator[str]:
        """Paths of fields inside of others that are not used."""
        yield from ()

    @property
    def prompt_field(self) -> str:
        """The field that holds the prompt, as errors name it."""
        return PROMPT_FIELD

    @property
    def ignored(self) -> list[str]:
        """Names of fields that were sent and change nothing although they might have been meant to."""
        return self._ignored


def unused_of(where: str, holder: object, known: Sequence[str] = (), *, quiet: Sequence[str] = ()) -> Iterator[str]:
    """Paths of keys of a JSON object that nobody reads."""
    if isinstance(holder, Mapping):
        fields: dict[str, Any] = {str(name): value for name, value in holder.items() if name not in known}
        yield from (f"{where}.{name}" for name in unused(fields, quiet=quiet))


def same_weights(values: object) -> object:
    """A body with `reward_weights`, which is what the adapters call it, under the name of the field.

    Raises:
        ValueError: it has both, and they differ.
    """
    if not isinstance(values, Mapping) or values.get(OWN[1]) is None:
        return values
    rest = {name: value for name, value in values.items() if name != OWN[1]}
    if rest.get(OWN[0]) is None:
        return {**rest, OWN[0]: values[OWN[1]]}
    if rest[OWN[0]] != values[OWN[1]]:
        raise ValueError(f"{OWN[1]} is another name of {OWN[0]}, and the two differ; give one of them")
    return rest
