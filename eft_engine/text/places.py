"""Where in a text a position is: behind a marker, between two, inside a string of JSON.

States are values: a state and the bytes of a token give the next one, and the old one is still there for another try. They follow
bytes, since a character may be split over tokens, and a marker over many.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self


class Place(Protocol):
    """A state of a text."""

    @property
    def is_inside(self) -> bool:
        """Whether the next token is drawn inside of what is looked for."""

    def after(self, written: bytes) -> Self:
        """The state when these bytes were written too."""


@dataclass(frozen=True)
class BehindMarker:
    """Inside is everything behind the first `marker`.

    >>> BehindMarker(b"ab").after(b"xa").is_inside, BehindMarker(b"ab").after(b"xa").after(b"b").is_inside
    (False, True)
    """

    marker: bytes
    is_inside: bool = False
    _tail: bytes = b""

    def after(self, written: bytes) -> BehindMarker:
        """See `Place`."""
        if self.is_inside:
            return self
        seen = self._tail + written
        if self.marker in seen:
            return replace(self, is_inside=True, _tail=b"")
        return replace(self, _tail=_end_of(seen, len(self.marker) - 1))


@dataclass(frozen=True)
class BetweenMarkers:
    """Inside is what stands behind `opening` and not yet behind `closing`; there may be several such places.

    >>> place = BetweenMarkers(b"<", b">")
    >>> [place.after(text).is_inside for text in (b"a", b"a<b", b"a<b>c", b"a<b>c<d")]
    [False, True, False, True]
    """

    opening: bytes
    closing: bytes
    is_inside: bool = False
    _tail: bytes = b""

    def after(self, written: bytes) -> BetweenMarkers:
        """See `Place`."""
        seen, inside = self._tail + written, self.is_inside
        while True:
            marker = self.closing if inside else self.opening
            _, found, behind = seen.partition(marker)
            if not found:
                return replace(self, is_inside=inside, _tail=_end_of(seen, len(marker) - 1))
            seen, inside = behind, not inside


@dataclass(frozen=True)
class InsideJsonString:
    """Inside is what stands between the quotes of a string of JSON, which begins with the first brace or bracket.

    >>> [InsideJsonString().after(text).is_inside for text in (b'say "a', b'{"a', b'{"a": "', b'{"a": "b"', b'["')]
    [False, False, True, False, True]

    Attributes:
        keys: names of properties are inside too.
    """

    keys: bool = False
    _open: tuple[int, ...] = ()  # braces and brackets that are open
    _in_string: bool = False
    _is_escaped: bool = False
    _is_key: bool = False  # of the string that it is in, or the next one

    @property
    def is_inside(self) -> bool:
        """See `Place`."""
        return self._in_string and (self.keys or not self._is_key)

    def after(self, written: bytes) -> InsideJsonString:
        """See `Place`."""
        opened, in_string, is_escaped, is_key = list(self._open), self._in_string, self._is_escaped, self._is_key
        for byte in written:
            if in_string:
                if is_escaped:
                    is_escaped = False
                elif byte == _BACKSLASH:
                    is_escaped = True
                elif byte == _QUOTE:
                    in_string = False
            elif byte == _QUOTE and opened:
                in_string = True
            elif byte in b"{[":
                opened.append(byte)
                is_key = byte == _BRACE
            elif byte in b"}]" and opened:
                opened.pop()
            elif byte == _COLON:
                is_key = False
            elif byte == _COMMA:
                is_key = bool(opened) and opened[-1] == _BRACE
        return replace(self, _open=tuple(opened), _in_string=in_string, _is_escaped=is_escaped, _is_key=is_key)


_QUOTE, _BACKSLASH, _COLON, _COMMA, _BRACE = b'"\\:,{'


def _end_of(seen: bytes, length: int) -> bytes:
    return seen[-length:] if length else b""
