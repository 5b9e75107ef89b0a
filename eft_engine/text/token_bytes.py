"""The bytes that a token stands for. A character may be split over several tokens, and then none of them is text by itself.

How a tokenizer writes bytes its decoder says: byte-level tokenizers have a letter for each byte (GPT-2), others a token `<0xE2>`
for each byte that no other token holds (byte fallback), and write spaces as U+2581.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from eft_engine.text.tokenizer import Tokenizer, skipped_tokens

FALLBACK = re.compile("<0x([0-9A-Fa-f]{2})>")
REPLACEMENT = "\ufffd"


def byte_letters() -> dict[str, int]:
    """GPT-2's letters of the 256 bytes: visible ones of Latin-1 stand for themselves, all others for letters from U+0100 on.

    >>> letters = byte_letters()
    >>> letters["a"], letters["Ġ"], len(letters)
    (97, 32, 256)
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(others)}


class TokenBytes:
    """Bytes of the tokens of one tokenizer.

    Args:
        tokenizer: a tokenizer. Of one without a decoder that can be read, the bytes are those of each token's own text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped_tokens(tokenizer)
        self._steps = list(_steps(tokenizer))
        kinds = {step["type"] for step in self._steps}
        self._letters = byte_letters() if "ByteLevel" in kinds else {}
        self._falls_back = "ByteFallback" in kinds
        self._is_known = bool(kinds & {"ByteLevel", "ByteFallback", "Metaspace"})
        self._drops_first_space = any(_drops_first_space(step) for step in self._steps)
        self._spelt: dict[int, str] | None = None

    def of(self, token_id: int, *, is_first: bool = False) -> tuple[int, ...] | None:
        """The bytes of a token, as numbers; None: it is a control token, which is no part of a text, or they are not known.

        Args:
            token_id: the token.
            is_first: no token stands before it; some tokenizers leave out a space there.
        """
        if token_id in self._skipped:
            return None
        spelt = self._spelling(token_id) if self._is_known else None
        if spelt is None:
            text = self._decoded(token_id)
            return None if REPLACEMENT in text else tuple(text.encode())
        found = self._bytes(spelt)
        return tuple(found[1:] if is_first and self._drops_first_space and found.startswith(b" ") else found)

    def text_of(self, token_id: int, *, is_first: bool = False) -> str:
        """The text of a token, control tokens included; part of a character is U+FFFD."""
        found = self.of(token_id, is_first=is_first)
        return self._decoded(token_id) if found is None else bytes(found).decode(errors="replace")

    def _decoded(self, token_id: int) -> str:
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False))

    def _spelling(self, token_id: int) -> str | None:
        """The token as the trained vocabulary writes it; None: it was added later, and is written as it is."""
        if self._spelt is None:
            added = self._tokenizer.added_tokens_decoder
            self._spelt = {own: text for text, own in self._tokenizer.get_vocab().items() if own not in added}
        return self._spelt.get(token_id)

    def _bytes(self, spelt: str) -> bytes:
        if self._falls_back and (found := FALLBACK.fullmatch(spelt)):
            return bytes([int(found[1], 16)])
        for step in self._steps:
            match step:
                case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                    spelt = spelt.replace(old, new)
                case {"type": "Metaspace", "replacement": str(old)}:
                    spelt = spelt.replace(old, " ")
        if self._letters and all(letter in self._letters for letter in spelt):
            return bytes(self._letters[letter] for letter in spelt)
        return spelt.encode()


def _steps(tokenizer: Tokenizer) -> Iterator[Mapping[str, Any]]:
    """What the decoder does, one after the other."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return
    step = json.loads(decoder.__getstate__())
    yield from step["decoders"] if step["type"] == "Sequence" else [step]


def _drops_first_space(step: Mapping[str, Any]) -> bool:
    match step:
        case {"type": "Strip", "content": " ", "start": int(start)}:
            return start > 0
        case {"type": "Metaspace"}:
            return bool(step.get("prepend_scheme", "always") != "never")
    return False
