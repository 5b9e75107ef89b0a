"""JSON that is still being written: whether a value is whole, and whether it can become one."""

from __future__ import annotations

import json


def json_end(text: str, start: int) -> int | None:
    """Where the JSON value that begins at `start` ends; None while it is not whole."""
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None


def is_hopeless(text: str, start: int) -> bool:
    """Whether the JSON at `start` is wrong whatever may follow.

    >>> is_hopeless('{"a": tru', 0), is_hopeless('{"a": "', 0), is_hopeless('{not json at all}', 0)
    (False, False, True)
    """
    try:
        json.JSONDecoder(strict=False).raw_decode(text, start)
    except json.JSONDecodeError as error:
        return not error.msg.startswith("Unterminated") and error.pos <= len(text.rstrip()) - len("\\u12345")
    except RecursionError:
        return True
    return False
