"""Moved; see `moved`."""

from __future__ import annotations

from eft_integrations.moved import moved

__getattr__ = moved(
    __name__,
    {
        "ToolChoice": "eft_integrations.chat.request",
    },
)
