"""One backend per trio or engine for everyone in a process."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from eft_engine import EngineConfig, MemberConfig
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.forking import forgets_in_children
from eft_integrations.backends.trio_source import TrioSource

if TYPE_CHECKING:
    from eft_engine import Engine


class _Closes(Protocol):
    @property
    def is_closed(self) -> bool: ...

    def close(self) -> None: ...


Key = TypeVar("Key", bound=Hashable)
Backend = TypeVar("Backend", bound=_Closes)


class Pool(Generic[Key, Backend]):
    """Backends by what they were made of. One that anybody closed is not handed out again, nor one of a forked child's parent."""

    def __init__(self) -> None:
        self._backends: dict[Key, Backend] = {}
        self._lock = threading.Lock()
        forgets_in_children(self)

    def in_child(self) -> None:
        """In a forked child: begin anew."""
        self._backends = {}
        self._lock = threading.Lock()

    def get(self, key: Key, make: Callable[[], Backend]) -> Backend:
        """The backend of this key, made now if there is none that is open; those that are closed are let go."""
        with self._lock:
            self._backends = {known: backend for known, backend in self._backends.items() if not backend.is_closed}
            if key not in self._backends:
                self._backends[key] = make()
            return self._backends[key]

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            for backend in self._backends.values():
                backend.close()
            self._backends.clear()


class _OfEngines:
    """One backend per engine that is loaded already; it lives as long as somebody holds it."""

    def __init__(self) -> None:
        self._backends: WeakValueDictionary[int, EngineBackend] = WeakValueDictionary()
        """By the engine's `id`, which no other object has while the backend holds the engine."""
        self._identities: WeakKeyDictionary[Engine, str] = WeakKeyDictionary()
        self._lock = threading.Lock()
        forgets_in_children(self)

    def in_child(self) -> None:
        """In a forked child: the lock may be held by a thread that is not there."""
        self._lock = threading.Lock()

    def get(self, engine: Engine) -> EngineBackend:
        with self._lock:
            backend = self._backends.get(id(engine))
            if backend is None:
                identity = self._identities.setdefault(engine, uuid.uuid4().hex)
                backend = self._backends[id(engine)] = EngineBackend.of(engine, model_name="eft", identity=identity)
            return backend


_SHARED: Pool[str, EngineBackend] = Pool()
_OF_ENGINES = _OfEngines()


def backend_of(engine: Engine) -> EngineBackend:
    """The backend of an engine that is already loaded, one and the same for all who ask. It lives as long as somebody holds it."""
    return _OF_ENGINES.get(engine)


def shared_backend(
    *,
    base: str | MemberConfig | Mapping[str, Any] | None = None,
    tuned: str | MemberConfig | Mapping[str, Any] | None = None,
    reference: str | MemberConfig | Mapping[str, Any] | None = None,
    pairs: Mapping[str, Any] | None = None,
    preset: str | None = None,
    engine_config: EngineConfig | Mapping[str, Any] | None = None,
) -> EngineBackend:
    """The process's backend of a trio: the same arguments give the same engine, loaded once, when it is first needed.

    When somebody closes that engine or its backend, the next one who asks gets a new backend.

    Name `preset`, or `base` with `tuned` and `reference`, or `base` with `pairs` (name -> `TunedPair` or `Term`, or a mapping
    or pair of sources). A model is a hub id, folder or .gguf file, or a `MemberConfig` or its fields where it has options.

    Raises:
        InvalidOptionError: the arguments contradict each other or are incomplete.
    """
    source = TrioSource.of(
        base=base, tuned=tuned, reference=reference, pairs=pairs, preset=preset, engine_config=engine_config
    )
    return backend_of_source(source)


def backend_of_source(source: TrioSource) -> EngineBackend:
    """The process's backend of a source; see `shared_backend`."""
    return _SHARED.get(source.key, lambda: EngineBackend.named(source))
