"""What a grammar's own text says about the way to an end."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass

from eft_engine.config import Grammar, JsonSchema, Lark, Regex
from eft_engine.text.spelling import FIRST_SPECIAL, Alphabet

MAX_WORDS = 64
"""So many words of a grammar are tried."""


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
                quoted = re.findall(r'"((?:[^"\\\n]|\\.)*)"|/((?:[^/\\\n]|\\.)+)/', re.sub(r"%json .*", "", source))
                text = " ".join([*itertools.chain(*quoted), *_patterns(source)])
        numbers = {int(own) for part in re.findall(r"<\[([^\]]*)\]>", source) for own in re.findall(r"\d+", part)}
        named = (own for own in alphabet.special_ids if own in numbers or alphabet.name(own) in source)
        literal = re.sub(r"\\+[a-zA-Z.]|\[[^\]]*\]", " ", text)  # classes of characters and dots end a word
        words = dict.fromkeys(re.findall(r"[\w\-/<>:=@#!%&~;]{2,}", re.sub(r"\\+(\W)", r"\1", literal)))
        return cls(
            tuple(FIRST_SPECIAL + own for own in sorted(named)),
            tuple(tuple(own.encode()) for own in list(words)[:MAX_WORDS]),
        )


def _patterns(json_text: str) -> list[str]:
    """The regular expressions in JSON schemas."""
    return [json.loads(own) for own in re.findall(r'"pattern": ?("(?:[^"\\]|\\.)*")', json_text)]
