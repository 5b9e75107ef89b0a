"""From settings to compositions: as few engines as possible, each with all pairs of the compositions over its base."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from eft_engine import EngineConfig, errors
from eft_engine.config import Pair
from eft_engine.weights import Weight
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.pool import shared_backend
from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.backends.remote import RemoteBackend, remote_backend
from eft_integrations.server.callers.weight_policy import DEFAULT, WeightPolicy
from eft_integrations.server.composition_settings import CompositionSettings, check_weight_names
from eft_integrations.server.compositions import Composition

logger = logging.getLogger(__name__)


def load_compositions(
    settings: Sequence[CompositionSettings], config: EngineConfig, *, upstream_api_key: str | None = None
) -> list[Composition]:
    """Load the engines, now, and name what they serve. Compositions of other servers are asked for what they have.

    An engine's own queue is not bounded: who waits is bounded before (`admission.Turns`), and what has a place is never refused.

    Raises:
        InvalidOptionError: compositions over one base call different models by one pair name.
        LoadError: a member cannot be loaded.
        RemoteServerError: another server cannot be reached, or serves no trio.
    """
    config = config.model_copy(update={"max_queued_requests": None})
    places = {_place(own) for own in settings if own.url is None}
    pairs_of = {place: merged_pairs([own for own in settings if _place(own) == place]) for place in places}
    backends: dict[tuple[str | None, str | None], EngineBackend] = {}
    compositions = []
    for own in settings:
        if own.url is not None:
            remote = remote_backend(own.url, served_name=own.served_name, api_key=upstream_api_key)
            compositions.append(_composition(own, remote))
            continue
        place = _place(own)
        if place not in backends:
            backends[place] = shared_backend(
                preset=own.preset, base=own.base, pairs=pairs_of[place] or None, engine_config=config
            )
        compositions.append(_composition(own, backends[place]))
    return compositions


def _place(composition: CompositionSettings) -> tuple[str | None, str | None]:
    """What is the same for compositions that share an engine."""
    return composition.preset, composition.base


def merged_pairs(compositions: Sequence[CompositionSettings]) -> dict[str, Pair]:
    """All pairs of compositions over one base, by name; a pair's own weight stays with its composition.

    Raises:
        InvalidOptionError: one name means different models.
    """
    merged: dict[str, Pair] = {}
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
    own: Mapping[str, Weight] = {name: pair.weight for name, pair in settings.tuned_pairs().items()}
    template = None
    if isinstance(backend, EngineBackend):
        _load(backend, settings.name)
    if settings.base is None:
        own = backend.weights
    elif own and isinstance(backend, EngineBackend):
        first = next(iter(own))
        if first != next(iter(backend.weights)):  # the engine's own is that of its first pair
            template = backend.template_of(first)
    _check_prompt_pairs(settings, backend)
    own = {**own, **{name: pair.weight for name, pair in settings.prompt_pairs.items()}}
    check_weight_names(settings.name, settings.weights, own)
    return Composition(
        settings.name,
        backend,
        {**own, **settings.weights},
        weight_policy=WeightPolicy.of(settings.weight_policy, DEFAULT),
        prompt_pairs=settings.prompt_pairs,
        with_own_weight=backend.model.prompt_pairs if isinstance(backend, RemoteBackend) else (),
        options=settings.composition.options(),
        call_weight=settings.call_weight,
        reasoning_weight=settings.reasoning_weight,
        call_lookahead=settings.call_lookahead,
        takes_prompt_pairs=settings.takes_prompt_pairs,
        chat_template=template,
        tool_notation=settings.tool_notation,
        reasoning_tags=settings.reasoning_tags,
    )


def _check_prompt_pairs(settings: CompositionSettings, backend: ChatBackend) -> None:
    """Raises InvalidOptionError where a prompt pair has the name of a pair, or a model that is none of the engine's."""
    held = backend.weights
    for name, pair in settings.prompt_pairs.items():
        where = f"composition {settings.name!r}: the prompt pair {name!r}"
        if name in held:
            raise errors.InvalidOptionError(
                f"{where} is called like a pair of its engine; give it another name", option="prompt_pairs", value=name
            )
        if pair.model.partition(".")[0] not in ("base", *held):
            raise errors.InvalidOptionError(
                f"{where} has the model {pair.model!r}; there are {', '.join(('base', *held))}",
                option="prompt_pairs",
                value=pair.model,
            )


def _load(backend: EngineBackend, composition: str) -> None:
    """Load an engine, unless that is done: before the server listens."""
    if backend.is_loaded:
        return
    logger.info("loading the engine of %s", composition)
    began = time.perf_counter()
    backend.engine  # noqa: B018 - which loads it
    logger.info("the engine of %s is loaded", composition, extra={"duration_s": time.perf_counter() - began})
