"""Moved; see `moved`."""

from __future__ import annotations

from eft_integrations.moved import moved

__getattr__ = moved(
    __name__,
    {
        "ChatBackend": "eft_integrations.backends.protocol",
        "ChatDelta": "eft_integrations.chat.request",
        "ChatRequest": "eft_integrations.chat.request",
        "ChatResult": "eft_integrations.chat.request",
        "EngineBackend": "eft_integrations.backends.engine",
        "backend_of": "eft_integrations.backends.pool",
        "shared_backend": "eft_integrations.backends.pool",
    },
)
