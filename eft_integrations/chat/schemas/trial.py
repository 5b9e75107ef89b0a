"""Whether llguidance can hold a schema: it is asked, with a tokenizer of single bytes."""

from __future__ import annotations

import functools
import json

from llguidance import LLMatcher, LLTokenizer

from eft_integrations.chat.schemas.together import MOST_TOGETHER, TooManyPairsError, most_together

UNSATISFIABLE = "Unsatisfiable schema"
"""How llguidance begins to say that no value fits."""


@functools.cache
def _tokenizer() -> LLTokenizer:
    return LLTokenizer("byte")


def problem(schema: object) -> str | None:
    """Why no grammar can be made of a schema; None where one can.

    >>> problem({"type": "integer"}), problem({"not": {}})
    (None, 'Unimplemented keys: ["not"]')
    """
    if isinstance(schema, bool):
        return None if schema else UNSATISFIABLE
    try:
        if (count := most_together(schema)) > MOST_TOGETHER:
            return f"{count} expressions hold together for one text, and {MOST_TOGETHER} can be held"
    except TooManyPairsError:
        return "its parts multiply"
    matcher = LLMatcher(_tokenizer(), LLMatcher.grammar_from_json_schema(json.dumps(schema)), log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.get_error().partition("\n")[0] if matcher.is_error() else None


@functools.lru_cache(maxsize=4096)
def reads(pattern: str) -> bool:
    """Whether a regular expression is one that masks can hold."""
    return problem({"type": "string", "pattern": pattern}) is None
