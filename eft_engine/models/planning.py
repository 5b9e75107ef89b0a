"""What would be loaded, worked out before any weight is read.

Sources are resolved, configurations and tokenizers read, networks that serve several members recognised, parameters counted on
the meta device, and the vocabulary proven. So a wrong trio is refused in seconds, and `eft inspect` shows what `Engine.load` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoTokenizer

from eft_engine.config import EngineConfig, MemberConfig, TunedPair
from eft_engine.errors import TokenizerMissingError, UnsupportedAdapterError
from eft_engine.models.adapters import adapter_num_bytes, check_adapter
from eft_engine.models.gguf_file import GGUFFile, read_gguf
from eft_engine.models.gguf_tokenizer import tokenizer_from_gguf
from eft_engine.models.llama_cpp.adapter_file import check_gguf_adapter, check_peft_adapter
from eft_engine.models.network_plans import GGUFReader, PlannedNetwork, network_key, plan_network
from eft_engine.models.sources import ResolvedMember, resolve_base, resolve_pair
from eft_engine.outputs import MemberReport, TrioReport, VocabularyReport
from eft_engine.text.tokenizer import Tokenizer
from eft_engine.text.vocabulary import MemberVocabulary, SharedVocabulary, prove_vocabulary


def member_names(pairs: Mapping[str, Any]) -> list[str]:
    """`base`, then `<pair>.tuned` and `<pair>.reference` for every pair: what members are called everywhere."""
    return ["base", *(f"{pair}.{role}" for pair in pairs for role in ("tuned", "reference"))]


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

    def check_supported(self) -> None:
        """Before any weight is read.

        Raises:
            UnsupportedModelError: a network cannot be run.
        """
        for network in self.networks.values():
            network.check_supported()

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
                    adapter_bytes=_adapter_bytes(adapter, network) if adapter else 0,
                    logits_width=network.logits_width,
                    context_len=network.context_len,
                    dtype=network.type_name,
                    runtime=network.runtime,
                    is_mapped=network.is_mapped,
                    left_out_bytes=network.left_out_bytes,
                    notes=network.notes,
                    layers=network.layers.kinds,
                    kv_bytes_per_token=network.layers.kv_bytes_per_token,
                    state_bytes=network.layers.state_bytes,
                    unsupported=network.unsupported,
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
    """Plan the trio of a base and its pairs. A network that the engine cannot run is planned too, and says so.

    Raises:
        LoadError: a member is missing, unreadable, unsafe or of an unsupported kind.
        VocabularyMismatchError: the members do not mean the same token by the same id.
    """
    resolved: dict[str, ResolvedMember] = {
        "base": resolve_base(MemberConfig(source=base) if isinstance(base, str) else base)
    }
    for name, pair in pairs.items():
        resolved[f"{name}.tuned"], resolved[f"{name}.reference"] = resolve_pair(name, pair)

    reader = GGUFReader()
    networks: dict[tuple[Any, ...], PlannedNetwork] = {}
    tokenizers: dict[tuple[Any, ...], Tokenizer] = {}
    members: dict[str, PlannedMember] = {}
    for role, member in resolved.items():
        gguf = reader.read(role, member)
        key = network_key(member, config)
        if key not in networks:
            networks[key] = plan_network(role, member, gguf, config)
        tokenizer_key = (member.source, member.config.revision, member.config.tokenizer)
        if tokenizer_key not in tokenizers:
            tokenizers[tokenizer_key] = load_tokenizer(role, member, gguf)
        if member.adapter is not None:
            _check_adapter(role, member, networks[key])
        members[role] = PlannedMember(role, networks[key].name, member, tokenizers[tokenizer_key])

    by_name = {network.name: network for network in networks.values()}
    vocabulary = prove_vocabulary(
        {
            name: MemberVocabulary(member.tokenizer, by_name[member.network].logits_width)
            for name, member in members.items()
        },
        mismatched_tokens=config.mismatched_tokens,
    )
    return TrioPlan(by_name, members, vocabulary)


def inspect_trio(
    base: str | MemberConfig, pairs: Mapping[str, TunedPair], config: EngineConfig | None = None
) -> TrioReport:
    """What `Engine.load` would load, without loading weights. Of a member that it would refuse, the report says why
    (`MemberReport.unsupported`). Other errors: as `plan_trio`.
    """
    return plan_trio(base, pairs, config or EngineConfig()).report()


def _check_adapter(role: str, member: ResolvedMember, network: PlannedNetwork) -> None:
    adapter = member.adapter
    assert adapter is not None, "the member has an adapter"
    if member.config.tensor_parallel:
        raise UnsupportedAdapterError(
            f"{role}: an adapter cannot sit on a tensor-parallel network; leave tensor_parallel out, or merge the "
            "adapter and give the merged model",
            member=role,
            source=str(adapter),
        )
    if network.runtime == "torch":
        if not adapter.is_dir():
            raise UnsupportedAdapterError(
                f"{role}: {adapter} is an adapter in llama.cpp's format and its network, {network.source}, runs in torch; give "
                "the PEFT folder, or let llama.cpp run the network (a .gguf file, and runtime 'auto' or 'llama.cpp')",
                member=role,
                source=str(adapter),
            )
        check_adapter(adapter, member=role)
        return
    assert network.gguf is not None, "llama.cpp computes .gguf files alone"
    if adapter.is_dir():
        check_peft_adapter(adapter, model=network.gguf, member=role)
    else:
        check_gguf_adapter(adapter, model=network.gguf, member=role)


def _adapter_bytes(adapter: Path, network: PlannedNetwork) -> int:
    if not adapter.is_dir():
        return read_gguf(adapter, member=network.name).tensor_bytes
    return adapter_num_bytes(adapter, network.dtype or torch.float32)  # converted ones are float32


def load_tokenizer(role: str, member: ResolvedMember, gguf: GGUFFile | None = None) -> Tokenizer:
    """The member's tokenizer; out of its .gguf file where it has one and none is named.

    Raises:
        TokenizerMissingError: the model came without one.
    """
    own, source = member.config, member.source
    if gguf is not None and not own.tokenizer:
        return cast(Tokenizer, tokenizer_from_gguf(gguf, member=role))
    arguments: dict[str, Any] = {"revision": own.revision} if own.revision and not own.tokenizer else {}
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
