"""Moved; see `moved`."""

from __future__ import annotations

from eft_integrations.moved import moved

__getattr__ = moved(
    __name__,
    {
        "RemoteBackend": "eft_integrations.backends.remote",
        "remote_backend": "eft_integrations.backends.remote",
    },
)
