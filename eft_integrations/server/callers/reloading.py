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
from eft_integrations.server.callers.callers import check_keys
from eft_integrations.server.callers.weight_policy import DEFAULT, WeightPolicy, check_pairs
from eft_integrations.server.composition_settings import CompositionSettings
from eft_integrations.server.service import Service
from eft_integrations.server.settings import ServerSettings

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often files are looked at."""
READ_ANEW = frozenset({"api_key", "api_key_file", "keys"})
"""Settings that take effect without a restart, beside the `weight_policy` of compositions."""

Stamp = tuple[int, int, int] | None


def not_yet() -> None:
    """While nothing can be read anew, as in loading, SIGHUP does nothing: by itself it would end the process."""
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


class Reloader:
    """Reads keys and policies anew; everything else of the settings takes effect with the next start, and the log names it.

    Args:
        service: gets them.
        read: reads all settings; raises `InvalidOptionError` where they cannot be read.
        files: the files whose change is looked for.
        seen: what `stamps(files)` gave before the service's settings were read; None: now.
    """

    def __init__(
        self,
        service: Service,
        read: Callable[[], ServerSettings],
        files: Sequence[Path],
        *,
        seen: Sequence[Stamp] | None = None,
    ) -> None:
        self._service = service
        self._read = read
        self._files = tuple(files)
        self._seen = tuple(stamps(self._files) if seen is None else seen)

    def reload(self) -> bool:
        """Read them; where that fails the old ones stay, and the log says why. True if they were read."""
        self._seen = stamps(self._files)
        try:
            self._take(self._read())
        except errors.InvalidOptionError as error:
            logger.error("keys and policies were not read anew, the old ones stay: %s", error)
            return False
        except Exception:
            logger.exception("keys and policies were not read anew, the old ones stay")
            return False
        return True

    def _take(self, settings: ServerSettings) -> None:
        ring, served = self._service.ring, self._service.served
        keys = settings.known_keys
        if len(ring) and not keys:
            raise errors.InvalidOptionError("no key is left, which would let in everybody", option="keys")
        pairs = {own.name: own.weights for own in served}
        policies = {
            own.name: WeightPolicy.of(own.weight_policy, DEFAULT) for own in settings.served if own.name in pairs
        }
        for name, policy in policies.items():
            check_pairs(policy, pairs[name], owner=f"composition {name!r}")
        check_keys(keys, {name: own.keys() for name, own in pairs.items()})
        before = {caller.name for caller in ring.callers}
        ring.replace(keys)
        served.replace_policies(policies)
        names = {key.name for key in keys}
        logger.info(
            "keys and policies were read anew; keys: %s; new: %s; gone: %s",
            _listed(names),
            _listed(names - before),
            _listed(before - names),
        )
        if others := changed_settings(self._service.settings, settings):
            logger.warning("these settings have changed and take effect with the next start: %s", ", ".join(others))
        key_file = settings.api_key_file
        if key_file is not None and key_file not in self._files:
            self._files += (key_file,)
            self._seen = stamps(self._files)

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
        """Reload when files have changed and then stood still from one look to the next: one may be in the middle of being
        written.
        """
        last = self._seen
        while True:
            await asyncio.sleep(LOOK_S)
            now = stamps(self._files)
            if now != self._seen and now == last:
                self.reload()
            last = now


def changed_settings(old: ServerSettings, new: ServerSettings) -> list[str]:
    """Names of settings that differ and are not read anew; of compositions, `compositions.NAME`."""
    plain = [
        name
        for name in type(old).model_fields
        if name not in READ_ANEW | {"compositions"} and getattr(old, name) != getattr(new, name)
    ]
    before, after = ({own.name: _lasting(own) for own in settings.served} for settings in (old, new))
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [*plain, *(f"compositions.{name}" for name in changed)]


def _lasting(composition: CompositionSettings) -> CompositionSettings:
    return composition.model_copy(update={"weight_policy": None})


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def stamps(files: Sequence[Path]) -> tuple[Stamp, ...]:
    """What changes when files do."""
    return tuple(_stamp(file) for file in files)


def _stamp(file: Path) -> Stamp:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
