"""How long an engine stays loaded, in the words that users of Ollama know."""

from __future__ import annotations

import math
import re

from eft_engine.errors import InvalidOptionError

FOREVER = math.inf
UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def keep_alive_s(value: float | str) -> float:
    """Seconds out of what callers write: a number of seconds, or a duration; negative is for ever.

    >>> keep_alive_s("5m"), keep_alive_s("1h30m"), keep_alive_s(2), keep_alive_s("0"), keep_alive_s(-1)
    (300.0, 5400.0, 2.0, 0.0, inf)

    Raises:
        InvalidOptionError: it is neither.
    """
    seconds = math.nan
    if isinstance(value, str):
        seconds = _duration_s(value.strip())
    elif not isinstance(value, bool) and isinstance(value, int | float):
        seconds = float(value)
    if math.isnan(seconds):
        raise InvalidOptionError(
            f'keep_alive is a number of seconds or a duration like "5m" or "1h30m"; 0 unloads the engine after every request, -1 '
            f"keeps it for ever; got {value!r}",
            option="keep_alive",
            value=value,
        )
    return seconds if seconds >= 0 else FOREVER


def _duration_s(text: str) -> float:
    """NaN for what is no duration."""
    sign, digits = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
    parts = DURATION.findall(digits)
    if parts and "".join(number + unit for number, unit in parts) == digits:
        return sign * sum(float(number) * UNITS_S[unit] for number, unit in parts)
    try:
        return float(text)
    except ValueError:
        return math.nan
