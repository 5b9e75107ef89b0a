"""Models as JSON and as keys of caches: `dumps`, `loads`, and what LangChain's caches tell one call from another by."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from langchain_core.load.serializable import SerializedConstructor
from pydantic import BaseModel

from eft_integrations.chat.request import ChatRequest
from eft_integrations.json_types import JsonObject

BESIDE = ("messages", "keep_alive_s")
"""What of a request is no part of a key: LangChain puts the messages beside it, and the rest changes no answer."""


def cache_key(identity: str, request: ChatRequest, *, output_version: str | None) -> str:
    """What two calls share that get the same answer to the same messages: the models, and all that is asked beside the messages.

    It is made of the request as a backend gets it, so an option that changes an answer cannot be missing, wherever it was given.

    Args:
        identity: of the backend, see `ChatBackend`.
        request: with or without messages, which LangChain puts beside the key.
        output_version: the form of the answer's content.
    """
    asked = {name: value for name, value in dataclasses.asdict(request).items() if name not in BESIDE}
    return json.dumps(
        {"eft": identity, "output_version": output_version, **asked},
        sort_keys=True,
        default=_in_words,
        ensure_ascii=False,
    )


def plain_constructor(constructor: SerializedConstructor) -> SerializedConstructor:
    """A model's constructor with configurations of members, pairs and engine as plain JSON, which its fields take too."""
    fields = {name: plain(value) for name, value in constructor["kwargs"].items()}
    return {**constructor, "kwargs": fields}


def plain(value: object) -> object:
    """What was set of configurations as JSON, wherever they are in a value: a tuned adapter has the rest from its reference."""
    match value:
        case BaseModel():
            kept = value.model_dump(mode="json", exclude_unset=True, fallback=repr)
            given = {name: getattr(value, name) for name in type(value).model_fields if name in kept or name == "kind"}
            return {name: plain(own) if _has_options(own) else kept.get(name, own) for name, own in given.items()}
        case Mapping():
            return {name: plain(inner) for name, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
    return value


def _has_options(value: object) -> bool:
    """Whether configurations are in a value, whose kinds have to be kept."""
    match value:
        case BaseModel():
            return True
        case Mapping():
            return any(map(_has_options, value.values()))
        case list() | tuple():
            return any(map(_has_options, value))
    return False


def _in_words(value: object) -> JsonObject | str:
    return value.model_dump(mode="json", fallback=repr) if isinstance(value, BaseModel) else repr(value)
