"""From settings to vLLM's command: compositions over one base, all of whose pairs one vLLM holds."""

from __future__ import annotations

import logging

from eft_engine import EngineConfig, MemberConfig, errors
from eft_engine import inspect_trio as report_on_trio
from eft_integrations.backends.vllm_server import numbers_alone
from eft_integrations.server.composition_settings import CompositionSettings
from eft_integrations.server.loading import merged_pairs
from eft_integrations.server.settings import ServerSettings
from eft_integrations.vllm.launch import Command, serve_command

HONOURED = frozenset({"host", "port", "api_key", "api_key_file", "keys", "compositions", "engine", "vllm_args"})
"""Settings that vLLM is started with; `serve_command` says of the engine's, `plain_keys` of keys what it cannot do."""

OWN_ENGINES = (
    "tool_notation", "reasoning_tags", "prompt_pairs", "takes_prompt_pairs", "call_weight", "reasoning_weight", "call_lookahead",
)  # fmt: skip
"""Settings of a composition that vLLM's server has no place for."""

logger = logging.getLogger(__name__)


def vllm_command(settings: ServerSettings) -> Command:
    """The command that serves the compositions of `settings`.

    Raises:
        InvalidOptionError: something that vLLM cannot do.
        LoadError, VocabularyMismatchError: as when the trio would be loaded.
    """
    base = _one_base(settings.compositions)
    _check_settings(settings)
    pairs = merged_pairs(settings.compositions)
    # The server's own bound of the queue is no wish of the user's; vLLM has its own way to wait.
    engine = EngineConfig(**settings.engine.model_dump(exclude_unset=True, exclude={"max_queued_requests"}))
    report = report_on_trio(base, pairs, EngineConfig(mismatched_tokens=engine.mismatched_tokens))
    for warning in report.warnings:
        logger.warning("%s", warning)
    return serve_command(
        {own.name: _weights(own, single=len(settings.compositions) == 1) for own in settings.compositions},
        base=MemberConfig(source=base),
        pairs=pairs,
        report=report,
        engine=engine,
        min_plausibility={own.name: own.composition.min_plausibility for own in settings.compositions},
        host=settings.host,
        port=settings.port,
        api_keys=settings.plain_keys,
        further=settings.vllm_args,
    )


def _check_settings(settings: ServerSettings) -> None:
    """Check that nothing is set which vLLM's server would not hold.

    Raises:
        InvalidOptionError: something is.
    """
    if restricted := [own.name for own in settings.compositions if own.weight_policy is not None]:
        raise errors.InvalidOptionError(
            f"composition {restricted[0]!r} has a weight_policy, which only our own engine knows (--engine eft); an eft serve "
            "in front of vLLM (url) holds it",
            option="weight_policy",
        )
    told = {name for own in settings.compositions for name in OWN_ENGINES if getattr(own, name) not in (None, {})}
    told |= {f"composition.{name}" for own in settings.compositions for name in own.composition.of_the_engine}
    if any(own.composition.tuned_plausibility for own in settings.compositions):
        told.add("composition.tuned_plausibility")
    if unknown := sorted((settings.model_fields_set - HONOURED) | told):
        raise errors.InvalidOptionError(
            f"{', '.join(unknown)}: only our own engine's server knows it (--engine eft); vLLM has flags of its own for much "
            "of it (--uds, --ssl-certfile, --tool-call-parser, ...), which --vllm-args takes",
            option=unknown[0],
        )


def _one_base(compositions: list[CompositionSettings]) -> str:
    bases = {own.base for own in compositions}
    if not compositions or None in bases:
        raise errors.InvalidOptionError(
            "--engine vllm needs compositions with a base and pairs (--base, --pair, or --config); presets and trios of "
            "other servers are for our own engine",
            option="compositions",
        )
    if len(bases) > 1:
        raise errors.InvalidOptionError(
            f"one vLLM serves one base, and these compositions have {', '.join(sorted(map(str, bases)))}; start one for each",
            option="compositions",
        )
    return str(bases.pop())


def _weights(own: CompositionSettings, *, single: bool) -> dict[str, float] | None:
    """The weights of a composition's name; None where they are the pairs' own.

    Raises:
        InvalidOptionError: one is a schedule.
    """
    weights = numbers_alone({**{name: pair.weight for name, pair in own.tuned_pairs().items()}, **own.weights})
    return None if single and not own.weights else weights
