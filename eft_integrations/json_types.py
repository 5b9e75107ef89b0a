"""JSON as types: what requests, replies and events are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
"""A JSON value that is made here. One that comes from outside is an `object` until a `match` has looked at it."""

JsonObject: TypeAlias = dict[str, Json]
"""A JSON object that is made here."""
