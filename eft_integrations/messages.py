"""Moved; see `moved`."""

from __future__ import annotations

from eft_integrations.moved import moved

__getattr__ = moved(
    __name__,
    {
        "InvalidToolCall": "eft_integrations.chat.messages",
        "Message": "eft_integrations.chat.messages",
        "Tool": "eft_integrations.chat.messages",
        "ToolCall": "eft_integrations.chat.messages",
    },
)
