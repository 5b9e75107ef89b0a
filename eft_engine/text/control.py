"""Control tokens: which texts a tokenizer reads as the structure of a conversation, and how text of others cannot forge them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

ZERO_WIDTH_SPACE = "\u200b"

STRUCTURE = re.compile(
    r"(?i)^[<\[].*(tool|function|call|think|response|output|result|turn|channel|message|header|role|inst|args|system|user|assistant|im_)"
)
"""Tokens in brackets that open or close a turn, a call, a result or a thought, by what they are called."""

Text = TypeVar("Text")


def control_texts(added: Iterable[tuple[str, bool]], templates: Iterable[str] = ()) -> set[str]:
    """The control tokens among a tokenizer's added tokens.

    Args:
        added: text of each added token, and whether it is flagged as special.
        templates: chat templates; a token in brackets that one of them mentions counts whatever its flag.
    """
    written = "\n".join(templates)
    return {
        text
        for text, is_special in added
        if text.strip() and (is_special or (text[0] in "<[" and (bool(STRUCTURE.match(text)) or text in written)))
    }


def neutralise(value: Text, controls: Sequence[str]) -> Text:
    """Break up control tokens with a zero-width space in every string of a value, keys of mappings included, so that they are read
    as text; the words stay readable.

    Args:
        value: a string, or mappings and sequences that hold strings.
        controls: texts of control tokens, the longest first.

    >>> neutralise({"a": ["<eos>b"]}, ["<eos>"]) == {"a": ["<" + ZERO_WIDTH_SPACE + "eos>b"]}
    True
    """
    broken: object = value
    match value:
        case str():
            text: str = value
            for token in controls:
                if len(token) > 1 and token in text:
                    text = text.replace(token, token[0] + ZERO_WIDTH_SPACE + token[1:])
            broken = text
        case Mapping():
            broken = {neutralise(key, controls): neutralise(own, controls) for key, own in value.items()}
        case list() | tuple():
            broken = type(value)(neutralise(own, controls) for own in value)
    return broken  # type: ignore[return-value]
