"""From settings to compositions: as few engines as possible, each with all pairs of the compositions over its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eft_engine import EngineConfig, TunedPair, errors
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.pool import shared_backend
from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.backends.remote import remote_backend
from eft_integrations.server.compositions import Composition
from eft_integrations.server.settings import CompositionSettings
from eft_integrations.server.weight_policy import DEFAULT, WeightPolicy


def load_compositions(
    settings: Sequence[CompositionSettings], config: EngineConfig, *, upstream_api_key: str | None = None
) -> list[Composition]:
    """Load the engines, now, and name what they serve. Compositions of other servers are asked for what they have.

    Raises:
        InvalidOptionError: compositions over one base call different models by one pair name.
        LoadError: a member cannot be loaded.
        RemoteServerError: another server cannot be reached, or serves no trio.
    """
    backends: dict[tuple[str | None, str | None], EngineBackend] = {}
    compositions = []
    for own in settings:
        if own.url is not None:
            remote = remote_backend(own.url, served_name=own.served_name, api_key=upstream_api_key)
            compositions.append(_composition(own, remote))
            continue
        place = (own.preset, own.base)
        if place not in backends:
            together = [other for other in settings if other.url is None and (other.preset, other.base) == place]
            pairs = merged_pairs(together)
            backends[place] = shared_backend(
                preset=own.preset, base=own.base, pairs=pairs or None, engine_config=config
            )
        compositions.append(_composition(own, backends[place]))
    return compositions


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


def _composition(settings: CompositionSettings, backend: ChatBackend) -> Composition:
    own: Mapping[str, float] = {name: pair.weight for name, pair in settings.tuned_pairs().items()}
    if settings.base is None:
        own = backend.weights
    if unknown := sorted(set(settings.weights) - set(own)):
        raise errors.InvalidOptionError(
            f"composition {settings.name!r} has a weight for {unknown[0]!r}; its pairs are {', '.join(own)}",
            option="weights",
            value=settings.weights,
        )
    first = next(iter(own), None)
    template = None
    if isinstance(backend, EngineBackend):
        backend.engine  # noqa: B018 - loaded before the server listens
        if first is not None and first != next(iter(backend.weights)):  # the engine's own is that of its first pair
            template = backend.template_of(first)
    return Composition(
        settings.name,
        backend,
        {**own, **settings.weights},
        weight_policy=WeightPolicy.of(settings.weight_policy, DEFAULT),
        chat_template=template,
        tool_notation=settings.tool_notation,
        reasoning_tags=settings.reasoning_tags,
    )
