"""What would be loaded, worked out before any weight is read.

Sources are resolved, configurations and tokenizers read, networks that serve several members recognised, parameters counted on
the meta device, and the vocabulary proven. So a wrong trio is refused in seconds, and `eft inspect` shows what `Engine.load` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoTokenizer

from eft_engine.config import EngineConfig, MemberConfig, Pair, TunedPair
from eft_engine.errors import TokenizerMissingError
from eft_engine.models.adapter_folder import read_adapter
from eft_engine.models.adapter_tokenizer import has_tokenizer, own_template, tokenizer_folder
from eft_engine.models.gguf_file import GGUFFile, read_gguf
from eft_engine.models.gguf_tokenizer import tokenizer_from_gguf
from eft_engine.models.llama_cpp.adapter_file import check_gguf_adapter, check_peft_adapter
from eft_engine.models.network_plans import GGUFReader, network_key, plan_network
from eft_engine.models.planned_network import PlannedNetwork
from eft_engine.models.sources import ResolvedMember, resolve_base, resolve_pair, resolve_term
from eft_engine.models.turn_ends import planned_ends
from eft_engine.outputs import MemberReport, TrioReport, VocabularyReport
from eft_engine.text.ends import TrioEnds, trio_ends
from eft_engine.text.tokenizer import Tokenizer
from eft_engine.text.vocabulary import MemberVocabulary, SharedVocabulary, prove_vocabulary


def member_names(pairs: Mapping[str, Pair]) -> list[str]:
    """`base`, then `<pair>.tuned` and, but for a term, `<pair>.reference` for every pair: what members are called everywhere."""
    names = ["base"]
    for name, pair in pairs.items():
        names += [f"{name}.tuned"] if pair.reference is None else [f"{name}.tuned", f"{name}.reference"]
    return names


def chat_member(names: Sequence[str]) -> str:
    """Of all members, the one whose template messages go through by default: the first tuned one, or the base alone."""
    return names[1] if len(names) > 1 else names[0]


@dataclass(frozen=True)
class PlannedMember:
    """One member of the trio: a network, an optional adapter, and its tokenizer."""

    name: str
    network: str
    resolved: ResolvedMember
    tokenizer: Tokenizer
    adapter: Path | None = None
    """What is switched on in its rows; None: nothing, or its network has the adapter inside."""
    adapter_notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrioPlan:
    """Everything that loading needs to know."""

    networks: Mapping[str, PlannedNetwork]
    members: Mapping[str, PlannedMember]
    vocabulary: SharedVocabulary
    ends: TrioEnds

    @property
    def sharded(self) -> list[PlannedNetwork]:
        """Networks that are split over all ranks."""
        return [network for network in self.networks.values() if network.member.tensor_parallel]

    @property
    def adapter_bytes(self) -> dict[str, int]:
        """What adapters that are switched per row add to each network that has some, by its name."""
        found: dict[str, int] = {}
        for network, adapter in {(member.network, member.adapter) for member in self.members.values()}:
            if adapter is not None:
                found[network] = found.get(network, 0) + _adapter_bytes(adapter, self.networks[network])
        return found

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
                    adapter_bytes=_adapter_bytes(member.adapter, network) if member.adapter else 0,
                    logits_width=network.logits_width,
                    context_len=network.context_len,
                    dtype=network.type_name,
                    runtime=network.runtime,
                    is_mapped=network.is_mapped,
                    left_out_bytes=network.left_out_bytes,
                    notes=(*network.notes, *member.adapter_notes),
                    adapter_notes=member.adapter_notes,
                    why_merged=network.why_merged,
                    layers=network.layers.kinds,
                    kv_bytes_per_token=network.layers.kv_bytes_per_token,
                    state_bytes=network.layers.state_bytes,
                    unsupported=network.unsupported,
                )
            )
        vocabulary = VocabularyReport(
            shared_vocab_size=self.vocabulary.shared_vocab_size,
            masked_ids=self.vocabulary.masked_ids,
            differences=tuple(
                str(difference)
                for difference in self.vocabulary.differences
                if difference.token_id not in self.vocabulary.kept
            ),
            widths={member.name: member.logits_width for member in members},
            kept=self.vocabulary.kept,
        )
        weights = sum(network.parameter_bytes for network in self.networks.values())
        adapters = {(member.network, member.adapter): member.adapter_bytes for member in members}
        total_bytes = weights + sum(adapters.values())
        return TrioReport(tuple(members), vocabulary, total_bytes, self.ends.table, self.ends.warnings)


def plan_trio(base: str | MemberConfig, pairs: Mapping[str, Pair], config: EngineConfig) -> TrioPlan:
    """Plan the trio of a base and its pairs. A network that the engine cannot run is planned too, and says so.

    Raises:
        LoadError: a member is missing, unreadable, unsafe or of an unsupported kind.
        InvalidOptionError: a device is not here, or an option is for another runtime.
        VocabularyMismatchError: the members do not mean the same token by the same id.
    """
    resolved: dict[str, ResolvedMember] = {
        "base": resolve_base(MemberConfig(source=base) if isinstance(base, str) else base)
    }
    for name, pair in pairs.items():
        if isinstance(pair, TunedPair):
            resolved[f"{name}.tuned"], resolved[f"{name}.reference"] = resolve_pair(name, pair)
        else:
            resolved[f"{name}.tuned"] = resolve_term(name, pair)

    reader = GGUFReader()
    plans: dict[tuple[Any, ...], PlannedNetwork] = {}
    networks: dict[tuple[Any, ...], PlannedNetwork] = {}
    tokenizers: dict[tuple[Any, ...], Tokenizer] = {}
    members: dict[str, PlannedMember] = {}
    for role, member in resolved.items():
        gguf = reader.read(role, member)
        own, shared = member.config, network_key(member, config)
        asked = (*shared, member.adapter, own.merge)
        if asked not in plans:
            plans[asked] = plan_network(role, member, gguf, config)
        plan = plans[asked]
        network = networks.setdefault((*shared, plan.runtime, plan.adapter), plan)
        folder = tokenizer_folder(member.adapter, named=member.tokenizer)
        tokenizer_key = (member.source, own.revision, own.tokenizer, folder)
        if tokenizer_key not in tokenizers:
            tokenizers[tokenizer_key] = load_tokenizer(role, member, gguf)
        switched = member.adapter if plan.adapter is None else None
        if switched is not None and network.runtime == "llama.cpp":
            _check_llama_cpp_adapter(role, switched, network)
        members[role] = PlannedMember(
            role, network.name, member, tokenizers[tokenizer_key], switched, plan.adapter_notes
        )

    by_name = {network.name: network for network in networks.values()}
    named = {
        name: planned_ends(name, member.resolved, by_name[member.network], member.tokenizer)
        for name, member in members.items()
    }
    vocabulary = prove_vocabulary(
        {
            name: MemberVocabulary(member.tokenizer, by_name[member.network].logits_width, named[name].used)
            for name, member in members.items()
        },
        mismatched_tokens=config.mismatched_tokens,
        tuned_only_tokens=config.tuned_only_tokens,
    )
    chat = members[chat_member(list(members))].tokenizer
    return TrioPlan(by_name, members, vocabulary, trio_ends(named, vocabulary, chat=chat))


def inspect_trio(base: str | MemberConfig, pairs: Mapping[str, Pair], config: EngineConfig | None = None) -> TrioReport:
    """What `Engine.load` would load, without loading weights. Of a member that it would refuse, the report says why
    (`MemberReport.unsupported`). Other errors: as `plan_trio`.
    """
    return plan_trio(base, pairs, config or EngineConfig()).report()


def _check_llama_cpp_adapter(role: str, adapter: Path, network: PlannedNetwork) -> None:
    assert network.gguf is not None, "llama.cpp computes .gguf files alone"
    if adapter.is_dir():
        check_peft_adapter(adapter, model=network.gguf, member=role)
    else:
        check_gguf_adapter(adapter, model=network.gguf, member=role)


def _adapter_bytes(adapter: Path, network: PlannedNetwork) -> int:
    if not adapter.is_dir():
        return read_gguf(adapter, member=network.name).tensor_bytes
    dtype = network.dtype or torch.float32  # llama.cpp's are written as float32
    return read_adapter(adapter, member=network.name).num_bytes(dtype)


def load_tokenizer(role: str, member: ResolvedMember, gguf: GGUFFile | None = None) -> Tokenizer:
    """The member's tokenizer; that of its adapter's folder, or out of its .gguf file, where it has one and none is named. A chat
    template without a tokenizer in the adapter's folder is that of the member.

    Raises:
        TokenizerMissingError: the model came without one.
    """
    own, source = member.config, member.source
    folder = tokenizer_folder(member.adapter, named=member.tokenizer)
    if folder is not None and has_tokenizer(folder):
        return _read_tokenizer(role, str(folder), own)
    if gguf is not None and not own.tokenizer:
        tokenizer = cast(Tokenizer, tokenizer_from_gguf(gguf, member=role))
    else:
        tokenizer = _read_tokenizer(role, own.tokenizer or source.location, own)
    if folder is not None and (template := own_template(folder, member=role)) is not None:
        tokenizer = cast(Any, tokenizer)
        tokenizer.chat_template = template
    return tokenizer


def _read_tokenizer(role: str, location: str, own: MemberConfig) -> Tokenizer:
    arguments: dict[str, Any] = {"revision": own.revision} if own.revision and location == own.source else {}
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
