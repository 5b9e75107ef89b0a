"""Counts what a body holds against the bounds, whatever route reads it: fields of one name mean one thing everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from eft_integrations.chat.template import RENDERING
from eft_integrations.server.bodies.bounds import BoundSettings
from eft_integrations.server.bodies.levels import levels
from eft_integrations.server.errors import INVALID, ApiError, Kind, shortened

Fields = Mapping[str, Any]

LENGTHS: Mapping[str, str] = {
    "messages": "messages",
    "input": "messages",
    "documents": "documents",
    "eft_prompt_pairs": "prompt_pairs",
    "prompt": "prompts",
    "items": "prompts",
    "continuations": "prompts",
    "tools": "tools",
    "functions": "tools",
    "stop": "stop",
    "stop_sequences": "stop",
    "stop_token_ids": "stop_token_ids",
    "logit_bias": "logit_bias",
}
"""Fields that are lists or mappings, and the bounds of their lengths."""
SPOKEN = ("messages", "input", "system")
"""Fields that hold what was said: messages, items, or parts of one."""
IN_PARTS = ("content", "output", "summary", "tool_calls", "reasoning_details")
"""Fields of a message that are lists of parts."""
SCHEMAS = (
    "response_format",
    "text",
    "output_format",
    "output_config",
    "guided_json",
    "json_schema",
    "structured_outputs",
)
"""Fields that are a schema or hold one; each tool is one too."""
NAMES = ("name", "tool_call_id", "call_id", "tool_use_id", "id", "role")
"""Fields of messages and tools that are names."""
SHORT = ("model", "user", "previous_response_id", "reasoning_effort")
"""Fields of a body that are names."""


def check_counts(body: Fields, bounds: BoundSettings) -> None:
    """Count what is in a body.

    Raises:
        ApiError: 400; something is more than a bound allows, or a template's variable is none.
    """
    for name, bound in LENGTHS.items():
        held = body.get(name)
        if isinstance(held, list | Mapping) and not (name == "prompt" and _are_numbers(held)):
            _check(len(held), getattr(bounds, bound), bound, name, what=f"{name} has {{}} entries")
    _check_answers(body, bounds)
    _check_stops(body, bounds)
    _check_prompt_pairs(body, bounds)
    _check_spoken(body, bounds)
    _check_schemas(body, bounds)
    _check_names(body, bounds)
    _check_variables(body, bounds)


def _are_numbers(held: object) -> bool:
    """Whether a prompt is one, as token ids: the context bounds it."""
    return isinstance(held, list) and bool(held) and isinstance(held[0], int)


def _check(count: int, most: int, bound: str, param: str, *, what: str, code: str | None = None) -> None:
    if count > most:
        _refuse(
            f"{what.format(f'{count:,}')}, and {most:,} are allowed (bounds.{bound}); send less, or in several calls",
            code or f"too_many_{bound}",
            param,
        )


def _refuse(message: str, code: str, param: str) -> NoReturn:
    raise ApiError(message, Kind(400, INVALID, code, param))


def _check_answers(body: Fields, bounds: BoundSettings) -> None:
    prompt, n = body.get("prompt"), body.get("n")
    prompts = len(prompt) if isinstance(prompt, list) and not _are_numbers(prompt) else 1
    answers = prompts * (n if isinstance(n, int) and n > 0 else 1)
    what = f"{prompts:,} prompts times n is {{}} answers"
    _check(answers, bounds.answers, "answers", "n", what=what)


def _check_stops(body: Fields, bounds: BoundSettings) -> None:
    for name in ("stop", "stop_sequences"):
        held = body.get(name)
        texts = [held] if isinstance(held, str) else held if isinstance(held, list) else []
        num_bytes = sum(len(text.encode()) for text in texts if isinstance(text, str))
        _check(num_bytes, bounds.stop_bytes, "stop_bytes", name, what=f"the strings of {name} have {{}} bytes")


def _check_prompt_pairs(body: Fields, bounds: BoundSettings) -> None:
    """Sides are prompts, with bounds like the request's own."""
    pairs = body.get("eft_prompt_pairs")
    for name, pair in pairs.items() if isinstance(pairs, Mapping) else ():
        where = f"eft_prompt_pairs.{shortened(name)}"
        _check_name(name, where, bounds)
        for side in ("positive", "negative") if isinstance(pair, Mapping) else ():
            held = pair.get(side)
            if isinstance(held, list):
                what = f"{where}.{side} has {{}} messages"
                _check(len(held), bounds.messages, "messages", f"{where}.{side}", what=what)
                parts = sum(
                    len(part)
                    for message in _objects(held)
                    for key in IN_PARTS
                    if isinstance(part := message.get(key), list)
                )
                _check(parts, bounds.parts, "parts", f"{where}.{side}", what=f"{where}.{side} has {{}} parts")
            elif isinstance(held, Mapping) and isinstance(texts := held.get("texts"), list):
                what = f"{where}.{side} takes out {{}} texts"
                _check(len(texts), bounds.documents, "documents", f"{where}.{side}", what=what)


def _check_spoken(body: Fields, bounds: BoundSettings) -> None:
    count = 0
    for name in SPOKEN:
        for message in _objects(body.get(name)):
            count += sum(len(part) for key in IN_PARTS if isinstance(part := message.get(key), list))
            _check(count, bounds.parts, "parts", name, what=f"{name} has {{}} parts or more")


def _check_schemas(body: Fields, bounds: BoundSettings) -> None:
    total = 0
    for param, schema in _schemas(body):
        text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
        num_bytes = len(text.encode())
        total += num_bytes
        _check(
            num_bytes,
            bounds.schema_bytes,
            "schema_bytes",
            param,
            what=f"{param} has {{}} bytes",
            code="schema_too_large",
        )
        _check(
            sum(map(len, levels(schema))), bounds.schema_values, "schema_values", param, what=f"{param} holds {{}} values",
            code="schema_too_large",
        )  # fmt: skip
    _check(
        total, bounds.all_schemas_bytes, "all_schemas_bytes", "tools", what="all tools and schemas have {} bytes",
        code="schema_too_large",
    )  # fmt: skip


def _schemas(body: Fields) -> Iterator[tuple[str, object]]:
    yield from ((name, _read(body[name])) for name in SCHEMAS if body.get(name) is not None)
    for name in ("tools", "functions"):
        yield from ((f"{name}.{index}", tool) for index, tool in enumerate(_objects(body.get(name))))


def _read(schema: object) -> object:
    """A schema that is sent as a text counts as what it says."""
    if isinstance(schema, str):
        try:
            return json.loads(schema)
        except (ValueError, RecursionError):
            return schema
    if isinstance(schema, Mapping) and isinstance(text := schema.get("json"), str):
        return {**schema, "json": _read(text)}
    return schema


def _check_names(body: Fields, bounds: BoundSettings) -> None:
    for name in SHORT:
        _check_name(body.get(name), name, bounds)
    for field in ("messages", "input", "tools", "functions"):
        for index, item in enumerate(_objects(body.get(field))):
            _check_item(item, f"{field}.{index}", bounds)


def _check_item(item: Fields, where: str, bounds: BoundSettings) -> None:
    for name in NAMES:
        _check_name(item.get(name), f"{where}.{name}", bounds)
    for inner in [item, *_objects(item.get("tool_calls"))]:
        if isinstance(function := inner.get("function"), Mapping):
            _check_name(function.get("name"), f"{where}.function.name", bounds)


def _check_name(name: object, where: str, bounds: BoundSettings) -> None:
    if isinstance(name, str):
        what = f"{where} has {{}} characters"
        _check(len(name), bounds.name_chars, "name_chars", where, what=what, code="name_too_long")


def _check_variables(body: Fields, bounds: BoundSettings) -> None:
    """Variables of templates are no arguments of what renders them."""
    variables = body.get("chat_template_kwargs")
    for name in variables if isinstance(variables, Mapping) else ():
        if name == "chat_template" and bounds.allow_chat_template:
            continue
        if name in RENDERING:
            reason = (
                "a chat_template is a program of the caller's, and this server runs none (bounds.allow_chat_template)"
                if name == "chat_template"
                else f"{shortened(name)} is no variable of a template, but says how it is rendered"
            )
            _refuse(
                f"chat_template_kwargs: {reason}; leave it out",
                "chat_template_not_allowed",
                f"chat_template_kwargs.{name}",
            )


def _objects(held: object) -> Sequence[Fields]:
    return [item for item in held if isinstance(item, Mapping)] if isinstance(held, list) else []
