"""Strings: which patterns and formats a grammar can hold, and in which words.

Where a format leaves room for texts that are no value (30 February is one to llguidance) or for digits without end, it is held to
less than it allows: dates that there are, years from 1 on, no leap seconds, six digits at most of a fraction or a number of days.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from eft_integrations.chat.schemas.tree import ANNOTATIONS
from eft_integrations.chat.schemas.trial import reads

YEAR = r"(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
LEAP_YEAR = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
DAY = r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
DATE = rf"(?:{YEAR}-{DAY}|{LEAP_YEAR}-02-29)"
HOUR = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
NAIVE_TIME = rf"{HOUR}:[0-5][0-9](?:\.[0-9]{{1,6}})?"
TIME = rf"{NAIVE_TIME}(?:Z|[+-]{HOUR})"
NAIVE_DATE_TIME = f"{DATE}T{NAIVE_TIME}"
NUMBER = r"[0-9]{1,6}"
CLOCK = rf"T(?:{NUMBER}H(?:{NUMBER}M(?:{NUMBER}S)?)?|{NUMBER}M(?:{NUMBER}S)?|{NUMBER}S)"
DAYS = rf"(?:{NUMBER}Y(?:{NUMBER}M(?:{NUMBER}D)?)?|{NUMBER}M(?:{NUMBER}D)?|{NUMBER}D)"
DURATION = rf"P(?:{DAYS}(?:{CLOCK})?|{CLOCK}|{NUMBER}W)"
LABEL = r"[a-z0-9]+(?:-[a-z0-9]+)*"
HOST = rf"(?:{LABEL}\.)*[a-z][a-z0-9]*(?:-[a-z0-9]+)*|(?:[1-9]?[0-9]\.){{3}}[1-9]?[0-9]"
HEX = "[0-9a-fA-F]"
ANY_UUID = HEX + r"{8}-(?:" + HEX + r"{4}-){3}" + HEX + r"{12}"
UUID = HEX + r"{8}-" + HEX + r"{4}-%s" + HEX + r"{3}-[89abAB]" + HEX + r"{3}-" + HEX + r"{12}"

FORMATS: Mapping[str, str] = {
    "date": DATE,
    "time": TIME,
    "date-time": f"{DATE}T{TIME}",
    "duration": DURATION,
    "base64": r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",
    "uuid": ANY_UUID,
    **{f"uuid{version}": UUID % version for version in range(1, 9)},
}
"""Formats by the expression of a whole text."""

KNOWN_FORMATS = frozenset({"email", "hostname", "ipv4", "ipv6", "uri"})
"""Formats that llguidance holds by itself."""
FREE_FORMATS = frozenset({"binary", "password", "path", "textarea"})
"""Formats that any text has."""

EQUIVALENTS: Mapping[str, str] = {
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?(?:\d+\.?\d*|\.\d+)$",
}
"""Patterns with look-around, which masks cannot hold, and what says the same without: pydantic's of a Decimal."""


def whole(expression: str) -> str:
    """The pattern of texts that an expression matches from the beginning to the end."""
    return f"^(?:{expression})$"


def held_pattern(pattern: object) -> str | None:
    """A pattern as masks can hold it; None where they cannot."""
    if not isinstance(pattern, str):
        return None
    pattern = EQUIVALENTS.get(pattern, pattern)
    return pattern if reads(pattern) else None


def held_string(schema: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a grammar gets of `pattern` and `format`, and which of them it cannot hold.

    >>> held_string({"pattern": "^(?=a)", "format": "email"})
    ({'format': 'email'}, ['pattern'])
    """
    held: dict[str, Any] = {}
    lost: list[str] = []
    patterns = []
    if "pattern" in schema:
        pattern = held_pattern(schema["pattern"])
        patterns.append(pattern)
    name = str(schema.get("format", ""))
    if name in FORMATS:
        patterns.append(whole(FORMATS[name]))
    elif name in KNOWN_FORMATS:
        held["format"] = name
    elif name and name not in FREE_FORMATS:
        lost.append("format")
    if None in patterns:
        lost.append("pattern")
    readable = [pattern for pattern in patterns if pattern is not None]
    if readable:
        held["pattern"] = readable[0]
    if readable[1:]:
        held["allOf"] = [{"pattern": pattern} for pattern in readable[1:]]
    return held, lost


def names_pattern(schema: Mapping[str, Any]) -> str | None:
    """The pattern of names that fit a schema of `propertyNames`, where it says no more than a pattern and a length."""
    said = set(schema) - ANNOTATIONS - {"type"}
    if schema.get("type", "string") != "string":
        return None
    if said == {"pattern"}:
        return held_pattern(schema["pattern"])
    if said == {"format"} and schema["format"] in FORMATS:
        return whole(FORMATS[schema["format"]])
    if said and said <= {"minLength", "maxLength"}:
        most = schema.get("maxLength", "")
        return rf"^[\s\S]{{{schema.get('minLength', 0)},{most}}}$"
    return None


def text_expressions(schema: Mapping[str, Any]) -> list[str]:
    """Expressions that a text as a whole must match, for notations that write strings without quotes. What cannot be said in this
    way is left out: a pattern with anchors inside of it, and formats that llguidance holds by itself.

    Args:
        schema: a grammar's schema of a string.

    >>> text_expressions({"type": "string", "pattern": "^[a-c]+$", "maxLength": 3})
    ['[a-c]+', '(?s:.{0,3})']
    """
    said = [
        own.get("pattern") for own in (schema, *(part for part in schema.get("allOf") or () if isinstance(part, dict)))
    ]
    found = [expression for pattern in said if pattern and (expression := _whole_text(pattern)) is not None]
    if "minLength" in schema or "maxLength" in schema:
        found.append(f"(?s:.{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}})")
    return found


def _whole_text(pattern: str) -> str | None:
    """An expression of the whole text in which a pattern is found; None where that takes more than reading its ends."""
    inner = pattern.removeprefix("^")
    from_start = inner != pattern
    to_end = inner.endswith("$") and (len(inner) - len(inner[:-1].rstrip("\\"))) % 2 == 1
    inner = inner[:-1] if to_end else inner
    without_escapes = re.sub(r"\\.|\[[^\]]*(?:\]|\Z)", "", inner)
    at_top = without_escapes
    while (shorter := re.sub(r"\([^()]*\)", "", at_top)) != at_top:
        at_top = shorter
    if set(without_escapes) & {"^", "$"} or ((from_start or to_end) and "|" in at_top):
        return None
    anything = "(?s:.*)"
    return f"{'' if from_start else anything}{inner if from_start and to_end else f'(?:{inner})'}{'' if to_end else anything}"
