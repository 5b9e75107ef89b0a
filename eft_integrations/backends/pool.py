"""One backend per trio or engine for everyone in a process."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from eft_engine import EngineConfig, TunedPair
from eft_engine.errors import InvalidOptionError
from eft_integrations.backends.engine import EngineBackend

_SHARED: dict[str, EngineBackend] = {}
_OF_ENGINES: WeakKeyDictionary[Any, EngineBackend] = WeakKeyDictionary()
_SHARED_LOCK = threading.Lock()


def backend_of(engine: Any) -> EngineBackend:
    """The backend of an engine that is already loaded, one and the same for all who ask."""
    with _SHARED_LOCK:
        if engine not in _OF_ENGINES:
            reference = weakref.ref(engine)
            _OF_ENGINES[engine] = EngineBackend(lambda: _alive(reference), model_name="eft")
        return _OF_ENGINES[engine]


def _alive(reference: weakref.ref[Any]) -> Any:
    engine = reference()
    assert engine is not None, "whoever asks holds the engine"
    return engine


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

    def load() -> Any:
        from eft_engine import Engine, load_preset

        if base is None:
            return load_preset(str(preset), config=config)
        return Engine.load(base, pairs=chosen, config=config)

    dumped = {name: pair.model_dump(mode="json") for name, pair in chosen.items()}
    key = json.dumps([preset, base, dumped, config.model_dump(mode="json")], sort_keys=True, default=str)
    with _SHARED_LOCK:
        if key not in _SHARED:
            _SHARED[key] = EngineBackend(load, model_name=preset or str(base), identity=key)
        return _SHARED[key]


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
