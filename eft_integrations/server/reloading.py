"""Keys and policies that are read anew while the server runs: on SIGHUP, and when one of their files has changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

from eft_engine import errors
from eft_integrations.server.service import Service
from eft_integrations.server.settings import ServerSettings
from eft_integrations.server.weight_policy import DEFAULT, WeightPolicy

logger = logging.getLogger(__name__)

LOOK_S = 2.0
"""How often files are looked at."""

Stamp = tuple[int, int, int] | None


class Reloader:
    """Reads keys and policies anew; everything else of the settings takes effect with the next start.

    Args:
        service: gets them.
        read: reads all settings; raises `InvalidOptionError` where they cannot be read.
        files: the files whose change is looked for.
    """

    def __init__(self, service: Service, read: Callable[[], ServerSettings], files: Sequence[Path]) -> None:
        self._service = service
        self._read = read
        self._files = tuple(files)
        self._seen = self._stamps()

    def reload(self) -> bool:
        """Read them; where that fails the old ones stay, and the log says why. True if they were read."""
        self._seen = self._stamps()
        try:
            settings = self._read()
            keys = settings.known_keys
            if len(self._service.ring) and not keys:
                raise errors.InvalidOptionError("no key is left, which would let in everybody", option="keys")
            self._service.ring.replace(keys)
        except errors.InvalidOptionError as error:
            logger.error("keys and policies were not read anew, the old ones stay: %s", error)
            return False
        self._service.served.replace_policies(
            {own.name: WeightPolicy.of(own.weight_policy, DEFAULT) for own in settings.served}
        )
        logger.info("keys and policies were read anew; %d keys: %s", len(keys), ", ".join(key.name for key in keys))
        return True

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncGenerator[None]:
        """Reload on SIGHUP and on changes, until the block ends."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(
            NotImplementedError, RuntimeError
        ):  # not on Windows, and not outside of the main thread
            loop.add_signal_handler(signal.SIGHUP, self.reload)
        looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _look(self) -> None:
        while self._files:
            await asyncio.sleep(LOOK_S)
            if self._stamps() != self._seen:
                self.reload()

    def _stamps(self) -> list[Stamp]:
        return [_stamp(file) for file in self._files]


def _stamp(file: Path) -> Stamp:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
