"""Short texts for tests: plain words, and one of each format that people read easily."""

from __future__ import annotations

import datetime
import functools
import math
import uuid
from collections.abc import Callable, Mapping

LETTERS = "abcdefghijklmnopqrstuvwxyz"
FIRST_DAY = datetime.date(2024, 1, 1)


def word(turn: int) -> str:
    """The word of a number: another for another number.

    >>> word(0), word(25), word(26)
    ('a', 'z', 'ba')
    """
    rest, last = divmod(turn, len(LETTERS))
    return (word(rest) if rest else "") + LETTERS[last]


def _day(turn: int) -> str:
    return (FIRST_DAY + datetime.timedelta(days=turn % 3650)).isoformat()


def _uuid(turn: int, *, version: int) -> str:
    return str(uuid.UUID(int=turn % 2**32, version=version))


FORMATS: Mapping[str, Callable[[int], str]] = {
    "date": _day,
    "time": lambda turn: f"12:{turn % 60:02}:00Z",
    "date-time": lambda turn: f"{_day(turn)}T12:00:00Z",
    "duration": lambda turn: f"P{turn + 1}D",
    "email": lambda turn: f"{word(turn)}@example.com",
    "hostname": lambda turn: f"{word(turn)}.example.com",
    "ipv4": lambda turn: f"192.0.2.{turn % 256}",
    "ipv6": lambda turn: f"2001:db8::{turn % 65536 + 1:x}",
    "ipvanyaddress": lambda turn: f"192.0.2.{turn % 256}",
    "ipv4network": lambda turn: f"192.0.{turn % 256}.0/24",
    "ipv6network": lambda turn: f"2001:db8:{turn % 65536 + 1:x}::/48",
    "ipvanynetwork": lambda turn: f"192.0.{turn % 256}.0/24",
    "ipv4interface": lambda turn: f"192.0.2.{turn % 256}/24",
    "ipv6interface": lambda turn: f"2001:db8::{turn % 65536 + 1:x}/48",
    "ipvanyinterface": lambda turn: f"192.0.2.{turn % 256}/24",
    "uri": lambda turn: f"https://example.com/{word(turn)}",
    "uri-reference": lambda turn: f"https://example.com/{word(turn)}",
    "multi-host-uri": lambda turn: f"https://example.com/{word(turn)}",
    "json-string": lambda turn: str(turn),
    "json-pointer": lambda turn: f"/{word(turn)}",
    **dict.fromkeys(("uuid", "uuid4"), functools.partial(_uuid, version=4)),
    **{f"uuid{version}": functools.partial(_uuid, version=version) for version in (1, 3, 5)},
}


def texts_of_format(name: object, turn: int, fewest: float = 0, most: float = math.inf) -> list[str]:
    """Texts of a format, of which the first is the nicest; without a format words of a length.

    >>> texts_of_format("date", 1), texts_of_format(None, 1, fewest=3), texts_of_format(None, 30, most=1)
    (['2024-01-02'], ['baa'], ['b'])
    """
    if isinstance(name, str):
        return [FORMATS[name](turn)] if name in FORMATS else []
    if most == 0:
        return [""]
    text = word(turn) if len(word(turn)) <= most else LETTERS[(turn // len(LETTERS)) % len(LETTERS)]
    return [text + "a" * (int(fewest) - len(text))]
