"""Sentences of a schema's grammar, drawn at random: what a model without any sense might write under its masks."""

from __future__ import annotations

import json
import random

from llguidance import LLMatcher, LLTokenizer

CLOSERS = frozenset(b'"}],\n')
"""Bytes that bring JSON to its end."""
TOKENIZER = LLTokenizer("byte")


def sentence(schema: object, draw: random.Random, *, max_len: int = 400) -> str | None:
    """A JSON text; None where the schema has no grammar, or no sentence came to its end within `max_len` bytes. The longer it is,
    the more it is brought to an end.

    >>> sentence({"type": "string", "pattern": "^(ab){2}$"}, random.Random(0))
    '"abab"'
    """
    source = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})
    matcher = LLMatcher(TOKENIZER, source, log_level=0)
    text = bytearray()
    while not matcher.is_error() and not matcher.is_stopped():
        if matcher.is_accepting() and draw.random() < 0.5:
            break
        allowed = _allowed(matcher)
        if not allowed or len(text) >= max_len:
            return None
        closing = [byte for byte in allowed if byte in CLOSERS]
        plain = [byte for byte in allowed if 32 <= byte < 127 and byte not in b"\\}]"]
        is_pressed = draw.random() < 0.2 + len(text) / max_len
        byte = draw.choice(closing if is_pressed and closing else plain or closing or allowed)
        matcher.consume_token(byte)
        text.append(byte)
    return None if matcher.is_error() else text.decode()


def _allowed(matcher: LLMatcher) -> list[int]:
    mask = matcher.compute_bitmask()
    return [byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1]
