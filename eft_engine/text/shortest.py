"""How many tokens a text has at least, told without tokenising it: what can never fit need not be read to its end."""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

from eft_engine.text.tokenizer import Tokenizer

SHRINKS: Mapping[str, int] = {"NFC": 4, "NFD": 4, "NFKC": 8, "NFKD": 8, "Lowercase": 4, "Prepend": 1, "ByteLevel": 1}
"""Normalisers, and how many bytes of a text may become one of them: a Hangul syllable has a third of its letters' bytes."""
CUTS = ("ByteLevel", "Split", "Metaspace", "Digits", "Punctuation", "UnicodeScripts")
"""Ways to cut a text of which no part is dropped, unless they say `Removed`."""
FORMS = ("NFC", "NFD", "NFKC", "NFKD")
PLAIN = ("Prepend", "ByteLevel")
"""Normalisers that change no byte."""
BLANK = "▁".encode()
"""What many vocabularies write for a blank."""
CHUNK = 64 * 1024
"""Bytes between two looks at whether that is enough."""


@dataclass(frozen=True)
class Shortest:
    """What is known of a tokenizer.

    Attributes:
        bytes_per_token: most bytes of a text (UTF-8) that one token stands for.
        longest_with: for each byte, most bytes of a token that has it: such a byte is that part of a token at least.
        form: the normal form of Unicode in which texts are tokenised; None: as they are.
        without_blanks: some tokens swallow the blanks beside them, which do not count then.
    """

    bytes_per_token: int
    longest_with: tuple[int, ...] | None = None
    form: str | None = None
    without_blanks: bool = False

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Shortest | None:
        """Of a tokenizer; worked out once. None: nothing is certain, as where all unknown words in a row are one token."""
        if tokenizer not in _KNOWN:
            _KNOWN[tokenizer] = cls._found(tokenizer)
        return _KNOWN[tokenizer]

    @classmethod
    def _found(cls, tokenizer: Tokenizer) -> Shortest | None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        normalizers, cuts = list(_steps(backend.normalizer)), list(_steps(backend.pre_tokenizer))
        if not all(step["type"] in CUTS and step.get("behavior") != "Removed" for step in cuts):
            return None
        shrinks = 1
        for step in normalizers:
            if (factor := _shrinks(step)) is None:
                return None
            shrinks *= factor
        vocabulary = tokenizer.get_vocab()
        added = list(tokenizer.added_tokens_decoder.values())
        texts = {str(token.content) for token in added}
        is_byte_level = any(step["type"] == "ByteLevel" for step in (*normalizers, *cuts))
        if not _reads_everything(backend.model, vocabulary, is_byte_level=is_byte_level):
            return None
        spelled = [_bytes_of(text, is_byte_level=is_byte_level and text not in texts) for text in (*vocabulary, *texts)]
        forms = [step["type"] for step in normalizers if step["type"] in FORMS]
        is_plain = (
            all(step["type"] in (*FORMS, *PLAIN) or _is_metaspace(step) for step in normalizers) and len(forms) <= 1
        )
        return cls(
            max(map(len, spelled)) * shrinks,
            _longest_with(spelled) if is_plain else None,
            forms[0] if forms else None,
            any(token.lstrip or token.rstrip for token in added),
        )

    def at_least(self, text: str, *, most: int | None = None) -> int:
        """Tokens that a text has, or fewer. It is looked at until there are more than `most`, if that is given."""
        if self.without_blanks:
            text = "".join(text.split())
        data = text.encode(errors="replace")
        least = -(-len(data) // self.bytes_per_token)
        if self.longest_with is None or (self.form is not None and not _is_normal(self.form, text)):
            return least
        whole = math.lcm(*self.longest_with)
        parts = [whole // longest for longest in self.longest_with]
        tokens = 0
        for start in range(0, len(data), CHUNK):
            if most is not None and max(least, tokens // whole) > most:
                break
            counts = Counter(data[start : start + CHUNK])
            tokens += sum(count * parts[byte] for byte, count in counts.items())
        return max(least, -(-tokens // whole))


_KNOWN: WeakKeyDictionary[Tokenizer, Shortest | None] = WeakKeyDictionary()


def _is_normal(form: str, text: str) -> bool:
    return text.isascii() or unicodedata.is_normalized(cast('Literal["NFC", "NFD", "NFKC", "NFKD"]', form), text)


def _bytes_of(token: str, *, is_byte_level: bool) -> bytes:
    """The bytes of a text that a token stands for; of a word that begins with a blank, the sign that is written for it."""
    if is_byte_level:
        return bytes(BYTES.get(sign, 0) for sign in token)
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.encode(errors="replace")


def _longest_with(spelled: Sequence[bytes]) -> tuple[int, ...]:
    longest = [1] * 256
    for own in spelled:
        for byte in {*own, *(b" " if BLANK in own else b"")}:
            longest[byte] = max(longest[byte], len(own))
    return tuple(longest)


def _is_metaspace(step: Mapping[str, Any]) -> bool:
    if step["type"] != "Replace":
        return False
    return bool(step["pattern"] == {"String": " "} and step["content"].encode() == BLANK)


def _signs() -> dict[str, int]:
    """The bytes that the signs of byte-level vocabularies stand for, as GPT-2 has them."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + index): byte for index, byte in enumerate(hidden)}


BYTES = _signs()


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a normaliser or of a way to cut, which may be a sequence."""
    if part is None:
        return
    waiting = [json.loads(part.__getstate__())]
    while waiting:
        step = waiting.pop()
        if step["type"] == "Sequence":
            waiting += step.get("normalizers") or step.get("pretokenizers") or []
        else:
            yield step


def _shrinks(step: Mapping[str, Any]) -> int | None:
    """How many bytes may become one; None: any number."""
    if step["type"] == "Replace":
        pattern = step["pattern"].get("String")
        return len(pattern.encode()) if pattern and step["content"] else None
    return SHRINKS.get(step["type"])


def _reads_everything(model: Any, vocabulary: Mapping[str, int], *, is_byte_level: bool) -> bool:
    """Whether each byte has a token at worst: none is dropped, and none becomes part of an unknown word."""
    if type(model).__name__ not in ("BPE", "Unigram"):
        return False
    if is_byte_level:
        return all(sign in vocabulary for sign in BYTES)
    has_bytes = all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    return has_bytes and bool(getattr(model, "byte_fallback", False))
