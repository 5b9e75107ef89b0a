"""What would be loaded, worked out before any weight is read.

Sources are resolved, configurations and tokenizers read, networks that serve several members recognised, parameters counted on
the meta device, and the vocabulary proven. So a wrong trio is refused in seconds, and `eft inspect` shows what `Engine.load` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from eft_engine.config import EngineConfig, MemberConfig, TunedPair
from eft_engine.errors import (
    CorruptWeightsError,
    InvalidOptionError,
    ModelNotFoundError,
    TokenizerMissingError,
    UnsupportedAdapterError,
    UnsupportedModelError,
)
from eft_engine.models.adapters import adapter_num_bytes, check_adapter
from eft_engine.models.process_group import accelerator_type, num_ranks
from eft_engine.models.sources import ResolvedMember, Source, resolve_base, resolve_pair
from eft_engine.models.tensor_parallel import why_not_split
from eft_engine.outputs import MemberReport, TrioReport, VocabularyReport
from eft_engine.text.tokenizer import Tokenizer
from eft_engine.text.vocabulary import MemberVocabulary, SharedVocabulary, prove_vocabulary


def member_names(pairs: Mapping[str, Any]) -> list[str]:
    """`base`, then `<pair>.tuned` and `<pair>.reference` for every pair: what members are called everywhere."""
    return ["base", *(f"{pair}.{role}" for pair in pairs for role in ("tuned", "reference"))]


@dataclass(frozen=True)
class PlannedNetwork:
    """One set of weights, before it is loaded."""

    name: str
    source: Source
    member: MemberConfig
    config: PreTrainedConfig
    architecture: str
    num_parameters: int
    dtype: torch.dtype
    device: str

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the weights in `dtype` (a quantisation config makes them fewer)."""
        return self.num_parameters * self.dtype.itemsize


@dataclass(frozen=True)
class PlannedMember:
    """One member of the trio: a network, an optional adapter, and its tokenizer."""

    name: str
    network: str
    resolved: ResolvedMember
    tokenizer: Tokenizer


@dataclass(frozen=True)
class TrioPlan:
    """Everything that loading needs to know."""

    networks: Mapping[str, PlannedNetwork]
    members: Mapping[str, PlannedMember]
    vocabulary: SharedVocabulary

    @property
    def sharded(self) -> list[PlannedNetwork]:
        """Networks that are split over all ranks."""
        return [network for network in self.networks.values() if network.member.tensor_parallel]

    def report(self) -> TrioReport:
        """What would be loaded, for people."""
        members: list[MemberReport] = []
        for member in self.members.values():
            network = self.networks[member.network]
            adapter = member.resolved.adapter
            members.append(
                MemberReport(
                    name=member.name,
                    source=str(network.source),
                    adapter=str(adapter) if adapter else None,
                    network=network.name,
                    architecture=network.architecture,
                    num_parameters=network.num_parameters,
                    parameter_bytes=network.parameter_bytes,
                    adapter_bytes=adapter_num_bytes(adapter, network.dtype) if adapter else 0,
                    logits_width=network.config.get_text_config().vocab_size,
                    context_len=getattr(network.config.get_text_config(), "max_position_embeddings", 0),
                    dtype=str(network.dtype).removeprefix("torch."),
                )
            )
        vocabulary = VocabularyReport(
            shared_vocab_size=self.vocabulary.shared_vocab_size,
            masked_ids=self.vocabulary.masked_ids,
            differences=tuple(str(difference) for difference in self.vocabulary.differences),
            widths={member.name: member.logits_width for member in members},
        )
        weights = sum(network.parameter_bytes for network in self.networks.values())
        adapters = {(member.network, member.adapter): member.adapter_bytes for member in members}
        return TrioReport(tuple(members), vocabulary, weights + sum(adapters.values()))


def plan_trio(base: str | MemberConfig, pairs: Mapping[str, TunedPair], config: EngineConfig) -> TrioPlan:
    """Plan the trio of a base and its pairs.

    Raises:
        LoadError: a member is missing, unreadable, unsafe or of an unsupported kind.
        VocabularyMismatchError: the members do not mean the same token by the same id.
    """
    resolved: dict[str, ResolvedMember] = {
        "base": resolve_base(MemberConfig(source=base) if isinstance(base, str) else base)
    }
    for name, pair in pairs.items():
        resolved[f"{name}.tuned"], resolved[f"{name}.reference"] = resolve_pair(name, pair)

    networks: dict[tuple[Any, ...], PlannedNetwork] = {}
    tokenizers: dict[tuple[Any, ...], Tokenizer] = {}
    members: dict[str, PlannedMember] = {}
    for role, member in resolved.items():
        key = _network_key(member, config)
        if key not in networks:
            networks[key] = _plan_network(role, member, config)
        tokenizer_key = (member.source, member.config.revision, member.config.tokenizer)
        if tokenizer_key not in tokenizers:
            tokenizers[tokenizer_key] = load_tokenizer(role, member)
        if member.adapter is not None:
            check_adapter(member.adapter, member=role)
            if member.config.tensor_parallel:
                raise UnsupportedAdapterError(
                    f"{role}: an adapter cannot sit on a tensor-parallel network; leave tensor_parallel out, or merge the "
                    "adapter and give the merged model",
                    member=role,
                    source=str(member.adapter),
                )
        members[role] = PlannedMember(role, networks[key].name, member, tokenizers[tokenizer_key])

    by_name = {network.name: network for network in networks.values()}
    vocabulary = prove_vocabulary(
        {
            name: MemberVocabulary(member.tokenizer, by_name[member.network].config.get_text_config().vocab_size)
            for name, member in members.items()
        },
        mismatched_tokens=config.mismatched_tokens,
    )
    return TrioPlan(by_name, members, vocabulary)


def inspect_trio(
    base: str | MemberConfig, pairs: Mapping[str, TunedPair], config: EngineConfig | None = None
) -> TrioReport:
    """What `Engine.load` would load, without loading weights. Errors: as `plan_trio`."""
    return plan_trio(base, pairs, config or EngineConfig()).report()


def _network_key(member: ResolvedMember, config: EngineConfig) -> tuple[Any, ...]:
    """Members with equal keys share one set of weights."""
    own = member.config
    return (
        member.source,
        own.revision,
        own.dtype or config.dtype,
        own.device or config.device,
        repr(own.device_map),
        repr(own.quantization_config),
        own.tensor_parallel,
    )


def _plan_network(role: str, member: ResolvedMember, config: EngineConfig) -> PlannedNetwork:
    own, source = member.config, member.source
    model_config = _load_config(role, member)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=own.trust_remote_code)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"{role}: {source} is not a causal language model that transformers can build: {error}",
            member=role,
            source=str(source),
        ) from error
    requested = own.dtype or config.dtype
    if requested == "auto":
        dtype = model_config.dtype or torch.float32
    else:
        dtype = getattr(torch, requested)
    device = resolve_device(own.device or config.device)
    if own.tensor_parallel:
        _check_tensor_parallel(role, source, model_config, device)
    return PlannedNetwork(
        name=role,
        source=source,
        member=own,
        config=model_config,
        architecture=type(model).__name__,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=dtype,
        device=device,
    )


def _check_tensor_parallel(role: str, source: Source, model_config: PreTrainedConfig, device: str) -> None:
    ranks = num_ranks()
    if ranks < 2:
        raise InvalidOptionError(
            f"{role}: tensor_parallel splits a network over several processes, and this program is one; start it with "
            "torchrun --nproc-per-node <processes> program.py",
            option="tensor_parallel",
            value=True,
        )
    if torch.device(device).type != accelerator_type():
        raise InvalidOptionError(
            f"{role}: a tensor-parallel network lies where transformers puts it, on {accelerator_type()}; got device={device!r}",
            option="device",
            value=device,
        )
    reason = "a .gguf file is read as a whole" if source.gguf_file else why_not_split(model_config, ranks)
    if reason is not None:
        raise UnsupportedModelError(
            f"{role}: {source} cannot be tensor-parallel: {reason}", member=role, source=str(source)
        )


def resolve_device(device: str) -> str:
    """A device name, with `auto` decided: the first GPU when there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _load_config(role: str, member: ResolvedMember) -> PreTrainedConfig:
    own, source = member.config, member.source
    arguments: dict[str, Any] = {"revision": own.revision} if own.revision else {}
    if source.gguf_file:
        arguments["gguf_file"] = source.gguf_file
    try:
        return AutoConfig.from_pretrained(source.location, trust_remote_code=own.trust_remote_code, **arguments)
    except ImportError as error:
        raise UnsupportedModelError(
            f"{role}: {source} needs a package that is not installed: {error} (GGUF files: pip install 'eft[gguf]')",
            member=role,
            source=str(source),
        ) from error
    except OSError as error:
        raise ModelNotFoundError(
            f"{role}: {source} is neither a local folder nor reachable on the hub: {error}",
            member=role,
            source=str(source),
        ) from error
    except Exception as error:  # a damaged file raises whatever its parser raises
        raise CorruptWeightsError(
            f"{role}: the configuration of {source} cannot be read: {error}", member=role, source=str(source)
        ) from error


def load_tokenizer(role: str, member: ResolvedMember) -> Tokenizer:
    """The member's tokenizer.

    Raises:
        TokenizerMissingError: the model came without one.
    """
    own, source = member.config, member.source
    arguments: dict[str, Any] = {"revision": own.revision} if own.revision and not own.tokenizer else {}
    if source.gguf_file and not own.tokenizer:
        arguments["gguf_file"] = source.gguf_file
    location = own.tokenizer or source.location
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=own.trust_remote_code, **arguments)
        empty = not tokenizer.get_vocab()
    except Exception as error:  # transformers raises many kinds here, depending on which file is missing
        raise _tokenizer_missing(role, location, str(error)) from error
    if empty:
        raise _tokenizer_missing(role, location, "its vocabulary is empty")
    found: Tokenizer = tokenizer
    return found


def _tokenizer_missing(role: str, location: str, reason: str) -> TokenizerMissingError:
    return TokenizerMissingError(
        f"{role}: {location} has no usable tokenizer ({reason}); copy the tokenizer files of its family there, or name "
        "them with MemberConfig(tokenizer=...)",
        member=role,
        source=location,
    )
