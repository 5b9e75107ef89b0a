"""Which media types are text, and can therefore be read."""

from __future__ import annotations

TEXT_TYPES = ("text/", "application/json", "application/xml", "application/yaml", "application/x-yaml")
"""How media types of text begin."""


def is_text(media_type: str) -> bool:
    """Whether a media type is one of text.

    >>> is_text("text/markdown"), is_text("application/pdf")
    (True, False)
    """
    return media_type.startswith(TEXT_TYPES)
