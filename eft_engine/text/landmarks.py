"""What a grammar's own text says about the way to an end."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from eft_engine.config import Grammar, JsonSchema, Lark, Regex
from eft_engine.text.spelling import FIRST_SPECIAL, Alphabet

MAX_WORDS = 64
"""So many words of a grammar are tried."""

# Callers of a server write grammars. None of these expressions reads a part of a text again that it has read in vain: where an end
# may be missing, the beginning is taken without it.
QUOTED = re.compile(r""""((?:[^"\\\n]|\\.)*)("?)|/((?:[^/\\\n]|\\.)+)(/?)""")
NUMBERED = re.compile(r"<\[([^\[\]]*)\]>")
NO_WORDS = re.compile(r"(?<!\\)\\+[a-zA-Z.]|\[[^\]]*(?:\]|\Z)")
"""Classes of characters and dots, which end a word."""
PATTERN = re.compile(r'"pattern": ?("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True)
class Landmarks:
    """Parts of a grammar's text that a sentence may need, as symbols: special tokens, and words of which only the whole brings the
    end nearer (`.*</think>`, `[a-z_]+_id`).
    """

    special: tuple[int, ...]
    words: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, grammar: Grammar, alphabet: Alphabet) -> Landmarks:
        """Those of a grammar. Lark names special tokens as they are written, or, as in `<[151657]>`, by number."""
        match grammar:
            case JsonSchema(json_schema=schema):
                source, text = "", " ".join(_patterns(json.dumps(schema)))
            case Regex(pattern=pattern):
                source, text = "", pattern
            case Lark(grammar=source):
                text = " ".join([*_quoted(re.sub(r"%json .*", "", source)), *_patterns(source)])
        numbers = {int(own) for part in NUMBERED.findall(source) for own in re.findall(r"\d{1,18}", part)}
        named = (own for own in alphabet.special_ids if own in numbers or alphabet.name(own) in source)
        literal = NO_WORDS.sub(" ", text)
        words = dict.fromkeys(re.findall(r"[\w\-/<>:=@#!%&~;]{2,}", re.sub(r"\\+(\W)", r"\1", literal)))
        return cls(
            tuple(FIRST_SPECIAL + own for own in sorted(named)),
            tuple(tuple(own.encode()) for own in list(words)[:MAX_WORDS]),
        )


def _quoted(lark: str) -> Iterator[str]:
    """What stands in quotes or between strokes, where these are closed."""
    for found in QUOTED.finditer(lark):
        if found[2] or found[4]:
            yield found[1] or found[3] or ""


def _patterns(json_text: str) -> Iterator[str]:
    """The regular expressions in JSON schemas. What only looks like one is left out."""
    for own in PATTERN.findall(json_text):
        with contextlib.suppress(ValueError):
            yield json.loads(own)
