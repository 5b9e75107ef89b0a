"""From settings to compositions: as few engines as possible, each with all pairs of the compositions over its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eft_integrations.backend import EngineBackend, EngineConfig, TunedPair, errors, shared_backend
from eft_integrations.server.compositions import Composition
from eft_integrations.server.settings import CompositionSettings


def load_compositions(settings: Sequence[CompositionSettings], config: EngineConfig) -> list[Composition]:
    """Load the engines, now, and name what they serve.

    Raises:
        InvalidOptionError: compositions over one base call different models by one pair name.
        LoadError: a member cannot be loaded.
    """
    backends: dict[tuple[str | None, str | None], EngineBackend] = {}
    for own in settings:
        place = (own.preset, own.base)
        if place not in backends:
            together = [other for other in settings if (other.preset, other.base) == place]
            pairs = merged_pairs(together)
            backends[place] = shared_backend(
                preset=own.preset, base=own.base, pairs=pairs or None, engine_config=config
            )
    return [_composition(own, backends[own.preset, own.base]) for own in settings]


def merged_pairs(compositions: Sequence[CompositionSettings]) -> dict[str, TunedPair]:
    """All pairs of compositions over one base, by name; a pair's own weight stays with its composition.

    Raises:
        InvalidOptionError: one name means different models.
    """
    merged: dict[str, TunedPair] = {}
    for composition in compositions:
        for name, pair in composition.tuned_pairs().items():
            known = merged.setdefault(name, pair)
            if (known.tuned, known.reference) != (pair.tuned, pair.reference):
                raise errors.InvalidOptionError(
                    f"pair {name!r} means different models in compositions over {composition.base!r}; "
                    "give one of them another name",
                    option="compositions",
                    value=name,
                )
    return merged


def _composition(settings: CompositionSettings, backend: EngineBackend) -> Composition:
    own: Mapping[str, float] = {name: pair.weight for name, pair in settings.tuned_pairs().items()}
    if settings.preset is not None:
        own = backend.weights
    if unknown := sorted(set(settings.weights) - set(own)):
        raise errors.InvalidOptionError(
            f"composition {settings.name!r} has a weight for {unknown[0]!r}; its pairs are {', '.join(own)}",
            option="weights",
            value=settings.weights,
        )
    first = next(iter(own), None)
    template = None
    if first is not None and first != next(iter(backend.weights)):  # the engine's own is that of its first pair
        template = backend.template_of(first)
    backend.engine  # noqa: B018 - loaded before the server listens
    return Composition(settings.name, backend, {**own, **settings.weights}, chat_template=template)
