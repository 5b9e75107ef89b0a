"""Whatever answers: an engine of this process, a server, a script."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.pool import backend_of, shared_backend
from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.backends.scripted import ScriptedBackend

if TYPE_CHECKING:
    from eft_integrations.backends.remote import RemoteBackend, remote_backend

__all__ = [
    "ChatBackend",
    "EngineBackend",
    "RemoteBackend",
    "ScriptedBackend",
    "backend_of",
    "remote_backend",
    "shared_backend",
]


def __getattr__(name: str) -> object:
    """Import what needs httpx on first use (PEP 562)."""
    if name in ("RemoteBackend", "remote_backend"):
        from eft_integrations.backends import remote

        found: object = getattr(remote, name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
