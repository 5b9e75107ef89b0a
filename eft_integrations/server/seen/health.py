"""Whether the server is alive, and whether it is ready for requests; and if not, which engine is at fault and why.

Alive (`/health`): the process and its event loop answer, and no engine is dead: whoever restarts processes asks this. Ready
(`/ready`): every engine is loaded, works and gets on with its work, other servers that hold models answer, and the server does not
drain: whoever sends requests asks this.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

from eft_engine import errors
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.backends.remote import RemoteBackend
from eft_integrations.server.compositions import Compositions

PROBE_TIMEOUT_S, PROBED_FOR_S = 2.0, 5.0
"""How long another server may take to say that it is ready, and how long that is believed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """What is wrong. `engine` are the names of the compositions that it serves, joined by +; None: the server itself."""

    engine: str | None
    reason: str

    @property
    def form(self) -> dict[str, str | None]:
        """As JSON."""
        return {"engine": self.engine, "reason": self.reason}


class Health:
    """The health of one server.

    Args:
        stall_timeout_s: an engine that has work and ends no pass for longer hangs; None: that is never said.
    """

    def __init__(self, served: Compositions, *, stall_timeout_s: float | None) -> None:
        self._served = served
        self._stall_timeout_s = stall_timeout_s
        self._probed: dict[str, tuple[float, Finding | None]] = {}
        self.is_draining = False

    @property
    def engines(self) -> list[tuple[str, ChatBackend]]:
        """All backends, with the names of the compositions that they serve."""
        return [
            ("+".join(own.name for own in self._served if own.backend is backend), backend)
            for backend in self._served.backends
        ]

    def drain(self) -> None:
        """Nothing new is taken from now on."""
        self.is_draining = True

    def deaths(self) -> list[Finding]:
        """Why the server is not alive."""
        return [finding for name, backend in self.engines if (finding := _death(name, backend)) is not None]

    async def obstacles(self) -> list[Finding]:
        """Why it is not ready."""
        found = self._local_obstacles()
        remotes = [(name, own) for name, own in self.engines if isinstance(own, RemoteBackend)]
        probed = await asyncio.gather(*(self._probe(name, own) for name, own in remotes))
        return [*found, *(finding for finding in probed if finding is not None)]

    def known_obstacles(self) -> list[Finding]:
        """`obstacles`, with what was last heard of other servers; asks nobody."""
        heard = [finding for _, finding in self._probed.values() if finding is not None]
        return [*self._local_obstacles(), *heard]

    def stall_s(self, backend: ChatBackend) -> float | None:
        """Seconds since an engine last got on with its work; None: it is no engine of this process, or not loaded."""
        health = backend.health() if isinstance(backend, EngineBackend) else None
        return None if health is None else health.seconds_since_progress

    def _local_obstacles(self) -> list[Finding]:
        draining = [Finding(None, "the server is shutting down")] if self.is_draining else []
        return [*draining, *_findings(self._obstacle(name, backend) for name, backend in self.engines)]

    def _obstacle(self, name: str, backend: ChatBackend) -> Finding | None:
        if (death := _death(name, backend)) is not None:
            return death
        if not isinstance(backend, EngineBackend):
            return None
        health = backend.health()
        if health is None:
            return Finding(name, "the engine is not loaded")
        limit = self._stall_timeout_s
        if limit is not None and health.seconds_since_progress > limit:
            return Finding(name, f"the engine has worked for more than {limit:g} s without ending a pass")
        return None

    async def _probe(self, name: str, backend: RemoteBackend) -> Finding | None:
        """Ask another server, unless it was asked a moment ago."""
        known = self._probed.get(name)
        if known is not None and time.monotonic() - known[0] < PROBED_FOR_S:
            return known[1]
        finding = None
        try:
            await asyncio.to_thread(backend.check_ready, timeout_s=PROBE_TIMEOUT_S)
        except errors.EFTError as error:
            finding = Finding(name, "the server that holds the model is not ready")
            if known is None or known[1] is None:
                logger.warning("%s: the server that holds the model is not ready: %s", name, error)
        self._probed[name] = (time.monotonic(), finding)
        return finding


def _death(name: str, backend: ChatBackend) -> Finding | None:
    if not isinstance(backend, EngineBackend):
        return None
    try:
        health = backend.health()
    except errors.ForkedEngineError:
        return Finding(name, "the engine belongs to the process that this one was forked from")
    if backend.is_closed:
        return Finding(name, "the engine was closed")
    if health is not None and health.failure is not None:
        return Finding(name, health.failure)
    return None


def _findings(found: Iterable[Finding | None]) -> list[Finding]:
    return [finding for finding in found if finding is not None]
