"""Sentences of a grammar, drawn at random: what a model without any sense might write under its masks."""

from __future__ import annotations

import functools
import json
import random

from llguidance import LLMatcher, LLTokenizer

CLOSERS = frozenset(b'"}],\n')
"""Bytes that bring JSON to its end, and lines."""


@functools.cache
def _tokenizer() -> LLTokenizer:
    return LLTokenizer("byte")


def matcher_of(grammar: object) -> LLMatcher:
    """Of a JSON schema, or of a Lark grammar as a text."""
    if isinstance(grammar, str):
        source = LLMatcher.grammar_from_lark(grammar)
    else:
        source = LLMatcher.grammar_from_json_schema(json.dumps(grammar), overrides={"whitespace_flexible": False})
    matcher = LLMatcher(_tokenizer(), source, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def accepts(grammar: object, text: str) -> bool:
    """Whether a text is a sentence of a grammar."""
    matcher = matcher_of(grammar)
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def sentence(grammar: object, draw: random.Random, *, max_len: int = 400) -> str | None:
    """A sentence; None where none came to its end within `max_len` bytes. The longer it is, the more it is brought to an end."""
    matcher = matcher_of(grammar)
    text = bytearray()
    while not matcher.is_stopped():
        if matcher.is_accepting() and draw.random() < 0.5:
            break
        if len(text) >= max_len:
            return None
        mask = matcher.compute_bitmask()
        allowed = [byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1]
        if not allowed:
            break
        closing = [byte for byte in allowed if byte in CLOSERS]
        plain = [byte for byte in allowed if 32 <= byte < 127 and byte not in b"\\}]"]
        is_pressed = draw.random() < 0.2 + len(text) / max_len
        byte = draw.choice(closing if is_pressed and closing else plain or closing or allowed)
        assert matcher.consume_token(byte), matcher.get_error()
        text.append(byte)
    return text.decode()
