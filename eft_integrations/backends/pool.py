"""One backend per trio or engine for everyone in a process."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from eft_engine import EngineConfig, TunedPair
from eft_engine.errors import InvalidOptionError
from eft_integrations.backends.engine import EngineBackend

if TYPE_CHECKING:
    from eft_engine import Engine


class _Closes(Protocol):
    @property
    def is_closed(self) -> bool: ...

    def close(self) -> None: ...


Key = TypeVar("Key", bound=Hashable)
Backend = TypeVar("Backend", bound=_Closes)


class Pool(Generic[Key, Backend]):
    """Backends by what they were made of. One that anybody closed is not handed out again."""

    def __init__(self) -> None:
        self._backends: dict[Key, Backend] = {}
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


_SHARED: Pool[str, EngineBackend] = Pool()
_OF_ENGINES: WeakValueDictionary[int, EngineBackend] = WeakValueDictionary()
"""By the engine's `id`, which no other object has while the backend holds the engine."""
_IDENTITIES: WeakKeyDictionary[Engine, str] = WeakKeyDictionary()
_OF_ENGINES_LOCK = threading.Lock()


def backend_of(engine: Engine) -> EngineBackend:
    """The backend of an engine that is already loaded, one and the same for all who ask. It lives as long as somebody holds it."""
    with _OF_ENGINES_LOCK:
        backend = _OF_ENGINES.get(id(engine))
        if backend is None:
            identity = _IDENTITIES.setdefault(engine, uuid.uuid4().hex)
            backend = _OF_ENGINES[id(engine)] = EngineBackend.of(engine, model_name="eft", identity=identity)
        return backend


def shared_backend(
    *,
    base: str | None = None,
    tuned: str | None = None,
    reference: str | None = None,
    pairs: Mapping[str, Any] | None = None,
    preset: str | None = None,
    engine_config: EngineConfig | Mapping[str, Any] | None = None,
) -> EngineBackend:
    """The process's backend of a trio: the same arguments give the same engine, loaded once, when it is first needed.

    When somebody closes that engine or its backend, the next one who asks gets a new backend.

    Name `preset`, or `base` with `tuned` and `reference`, or `base` with `pairs` (name -> `TunedPair`, or a mapping or
    pair of sources).

    Raises:
        InvalidOptionError: the arguments contradict each other or are incomplete.
    """
    config = engine_config if isinstance(engine_config, EngineConfig) else EngineConfig(**(engine_config or {}))
    chosen = _pairs(tuned, reference, pairs)
    if preset is not None and (base is not None or chosen):
        raise InvalidOptionError("preset names a whole trio; do not combine it with base, tuned, ...", option="preset")
    if preset is None and base is None:
        raise InvalidOptionError("name the large model: base=..., or preset=...", option="base")

    def load() -> Engine:
        from eft_engine import Engine, load_preset

        if base is None:
            return load_preset(str(preset), config=config)
        return Engine.load(base, pairs=chosen, config=config)

    dumped = {name: pair.model_dump(mode="json") for name, pair in chosen.items()}
    key = json.dumps([preset, base, dumped, config.model_dump(mode="json")], sort_keys=True, default=str)
    return _SHARED.get(key, lambda: EngineBackend(load, model_name=preset or str(base), identity=key))


def _pairs(tuned: str | None, reference: str | None, pairs: Mapping[str, Any] | None) -> dict[str, TunedPair]:
    if (tuned is None) != (reference is None):
        raise InvalidOptionError("tuned and reference belong together; give both", option="tuned")
    chosen = {"tuned": TunedPair(tuned, reference)} if tuned is not None and reference is not None else {}
    for name, pair in (pairs or {}).items():
        match pair:
            case TunedPair():
                chosen[name] = pair
            case Mapping():
                chosen[name] = TunedPair(**pair)
            case (str(first), str(second)):
                chosen[name] = TunedPair(first, second)
            case _:
                raise InvalidOptionError(
                    f"pair {name!r} must be a TunedPair, a mapping or (tuned, reference), got {pair!r}", option="pairs"
                )
    return chosen
