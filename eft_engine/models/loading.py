"""Weights into memory: every distinct network once, adapters on top, with checks before and after."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from eft_engine.config import EngineConfig, Quantization
from eft_engine.errors import (
    UnsupportedModelError,
)
from eft_engine.models.adapter_folder import read_adapter
from eft_engine.models.gguf_weights import load_gguf_model
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.llama_cpp.network import LlamaCppNetwork
from eft_engine.models.llama_cpp.weights import LlamaCppWeights
from eft_engine.models.load_errors import check_loaded, loading_error
from eft_engine.models.memory_check import check_memory, gib
from eft_engine.models.merged import with_adapter_inside
from eft_engine.models.native.draft_copy import draft_quantization
from eft_engine.models.native.families import NotForKernelsError
from eft_engine.models.native.network import native_network
from eft_engine.models.native.quantising import KINDS, held_share
from eft_engine.models.network import Network
from eft_engine.models.peft_models import unwrap
from eft_engine.models.planned_network import PlannedNetwork
from eft_engine.models.planning import TrioPlan, chat_member
from eft_engine.models.process_group import RankChannel
from eft_engine.models.recording import recorder_for
from eft_engine.models.self_check import WHAT_TO_DO
from eft_engine.models.support import why_refused
from eft_engine.models.tensor_parallel import ShardedLanguageModel, follow, loading_arguments
from eft_engine.models.turn_ends import loaded_ends
from eft_engine.models.work_memory import step_bytes
from eft_engine.text.ends import TrioEnds, trio_ends
from eft_engine.text.tokenizer import Tokenizer
from eft_engine.text.vocabulary import MemberVocabulary, SharedVocabulary, prove_vocabulary

logger = logging.getLogger(__name__)

SCORED_TOGETHER = 64
"""Rows of logits that a scoring request wants at a time."""


@dataclass(frozen=True)
class TrioMember:
    """One member ready to run: a network, the name of its adapter on that network, and its tokenizer."""

    name: str
    network: Network
    adapter: str | None
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Trio:
    """All members in the order of `member_names`, the vocabulary they share, and what ends their texts."""

    members: Mapping[str, TrioMember]
    vocabulary: SharedVocabulary
    ends: TrioEnds

    @property
    def unknown_ids(self) -> dict[tuple[Network, str | None], frozenset[int]]:
        """By network and adapter the kept ids that it does not know."""
        kept = frozenset(self.vocabulary.kept_ids)
        return {
            (member.network, member.adapter): kept & self.vocabulary.unknown_ids.get(member.name, frozenset())
            for member in self.members.values()
        }

    @property
    def networks(self) -> list[Network]:
        """The distinct networks, the base's first."""
        return list(dict.fromkeys(member.network for member in self.members.values()))


def load_trio(plan: TrioPlan, config: EngineConfig) -> Trio:
    """Load what `plan` names.

    Raises:
        LoadOutOfMemoryError: the weights do not fit; nothing stays in memory.
        CorruptWeightsError: a file cannot be read, or tensors are missing or have other shapes than the architecture's.
        UnsupportedModelError: a network cannot be run; told from class and configuration before any weight is read, or else
            found by transformers or by `LanguageModel`.
        TensorParallelError: another rank could not load its part of a network.
    """
    plan.check_supported()
    networks: dict[str, Network] = {}
    members: dict[str, TrioMember] = {}
    with _progress_display(plan, config) as display:
        if plan.sharded:
            sharded, channel = _load_sharded(plan, config, display)
            channel.open()
            for leading in sharded.values():
                leading.lead(channel)
            networks |= sharded
        else:
            check_memory(plan.networks.values(), _bytes_beside(plan, config), work_bytes=_least_work(plan, config))
        try:
            for planned in plan.networks.values():
                if planned.name not in networks:
                    networks[planned.name] = _load_network(planned, plan, config, display.start(planned))
            for member in plan.members.values():
                network, adapter = networks[member.network], None
                if member.adapter is not None:
                    network, adapter = network.with_adapter(member.adapter, member=member.name)
                members[member.name] = TrioMember(member.name, network, adapter, member.tokenizer)
        except BaseException:
            # Those with adapters too; and ranks that follow must not wait.
            for network in dict.fromkeys([*networks.values(), *(member.network for member in members.values())]):
                network.release()
            raise
    unused = [
        network for network in networks.values() if all(member.network is not network for member in members.values())
    ]
    for network in unused:  # only with adapters, which are networks of their own
        network.release()
    _warn(plan.ends)
    return Trio(members, plan.vocabulary, plan.ends)


def _bytes_beside(plan: TrioPlan, config: EngineConfig) -> dict[str, int]:
    """What adapters, and copies that draft, add to networks, by their names. A copy that nobody asked for is left out where memory
    is short, see `draft_quantization`.
    """
    beside = plan.adapter_bytes
    if config.cpu_kernels is not False and config.draft_quantization not in (None, "none"):
        for name in {member.network for member in plan.members.values() if member.name.endswith(".tuned")}:
            network = plan.networks[name]
            if network.dtype is not None and network.device == "cpu" and network.type_name not in KINDS:
                share = held_share(config.draft_quantization, network.dtype)
                beside[name] = beside.get(name, 0) + int(share * network.parameter_bytes)
    return beside


def _least_work(plan: TrioPlan, config: EngineConfig) -> int:
    """Bytes that a step of one request works with."""
    return step_bytes(
        plan.networks.values(), config, num_members=len(plan.members), width=plan.vocabulary.width, num_seqs=1
    )


def _warn(ends: TrioEnds) -> None:
    for warning in ends.warnings:
        logger.warning("%s", warning)


def follow_trio(plan: TrioPlan, config: EngineConfig) -> None:
    """On a rank other than 0: hold this rank's part of what `plan` splits, and run it until rank 0 closes its engine.

    Raises:
        LoadError: as for `load_trio`.
        TensorParallelError: another rank could not load its part, is lost, or failed.
    """
    plan.check_supported()
    with _progress_display(plan, config) as display:
        networks, channel = _load_sharded(plan, config, display)
    follow(networks, channel)


def _load_sharded(
    plan: TrioPlan, config: EngineConfig, display: LoadingDisplay
) -> tuple[dict[str, ShardedLanguageModel], RankChannel]:
    """On all ranks together: the networks that are split, before any other."""
    channel = RankChannel(timeout_s=config.tensor_parallel_timeout_s)
    networks: dict[str, ShardedLanguageModel] = {}
    with channel.agreement():
        networks_here = plan.networks.values() if channel.rank == 0 else plan.sharded
        check_memory(networks_here, _bytes_beside(plan, config), work_bytes=_least_work(plan, config))
    for planned in plan.sharded:
        progress = display.start(planned)
        with channel.agreement():
            model = load_model(planned, progress)
        with channel.agreement():
            networks[planned.name] = ShardedLanguageModel(
                model, name=planned.name, attention=config.attention, self_check=config.self_check
            )
    return networks, channel


def trio_from_models(
    models: Mapping[str, PreTrainedModel], tokenizers: Mapping[str, Tokenizer], config: EngineConfig
) -> Trio:
    """A trio of models that are loaded already, by member name; one object under several names is held once.

    Raises:
        VocabularyMismatchError, UnsupportedModelError: as when loading.
        UnsupportedAdapterError: see `unwrap`.
    """
    models = unwrap(models)
    for name, model in models.items():
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            raise UnsupportedModelError(
                f"{name}: {type(model).__name__} is split over several processes already, and rank 0 alone would wait for the "
                "others for ever; let Engine.load split it, with MemberConfig(tensor_parallel=True)",
                member=name,
            )
        reason = why_refused(model)
        if reason is not None:
            raise UnsupportedModelError(f"{name}: {reason}; {WHAT_TO_DO}", member=name)
    named = {name: loaded_ends(name, model, tokenizers[name]) for name, model in models.items()}
    vocabulary = prove_vocabulary(
        {
            name: MemberVocabulary(tokenizers[name], model.get_output_embeddings().weight.shape[0], named[name].used)
            for name, model in models.items()
        },
        mismatched_tokens=config.mismatched_tokens,
        tuned_only_tokens=config.tuned_only_tokens,
    )
    ends = trio_ends(named, vocabulary, chat=tokenizers[chat_member(list(models))])
    networks: dict[int, LanguageModel] = {}
    try:
        for name, model in models.items():
            if id(model) not in networks:
                networks[id(model)] = _network(
                    model,
                    name,
                    config,
                    members=[other for other, own in models.items() if own is model],
                    keep_weights=True,
                    quantization=config.quantization,
                )
    except BaseException:
        for network in networks.values():  # models that somebody else holds are given back
            network.release()
        raise
    members = {name: TrioMember(name, networks[id(model)], None, tokenizers[name]) for name, model in models.items()}
    _warn(ends)
    return Trio(members, vocabulary, ends)


def _load_network(
    planned: PlannedNetwork, plan: TrioPlan, config: EngineConfig, progress: Callable[[int], None]
) -> Network:
    if planned.runtime == "torch":
        model, keep_weights = _load_tuned_model(planned, progress)
        return _network(
            model,
            planned.name,
            config,
            members=[name for name, member in plan.members.items() if member.network == planned.name],
            keep_weights=keep_weights,
            quantization=planned.member.quantization or config.quantization,
        )
    assert planned.gguf is not None, "llama.cpp computes .gguf files alone"
    assert planned.llama_cpp is not None, "a network in llama.cpp has options for it"
    weights = LlamaCppWeights(
        planned.gguf,
        options=planned.llama_cpp,
        name=planned.name,
        original_context_len=planned.original_context_len,
        progress=progress,
    )
    # A request, and a conversation that is kept, may have a stream for each member; two more slots only loading uses.
    num_members = sum(member.network == planned.name for member in plan.members.values())
    num_slots = (config.max_num_seqs + config.max_warm_prefixes) * num_members + 2
    rows_of_request = 1 + config.speculation.max_draft_tokens
    return LlamaCppNetwork(
        weights,
        options=planned.llama_cpp,
        name=planned.name,
        num_slots=num_slots,
        max_outputs=max(SCORED_TOGETHER, config.max_num_seqs * rows_of_request),
        self_check=config.self_check,
    )


def _network(
    model: PreTrainedModel,
    name: str,
    config: EngineConfig,
    *,
    members: Collection[str],
    keep_weights: bool,
    quantization: Quantization,
) -> LanguageModel:
    """A network of torch that these members have together."""
    recorder = recorder_for(model) if config.cuda_graphs else None
    wanted = config.cpu_kernels
    if wanted is None and (config.deterministic or quantization != "none"):
        wanted = True
    reason = "cpu_kernels is off"
    if wanted is not False and recorder is None and config.attention == "sdpa":
        try:
            return native_network(
                model,
                name=name,
                self_check=config.self_check,
                keep_weights=keep_weights,
                quantization=quantization,
                draft_quantization=draft_quantization(model, config, members=members, quantization=quantization),
                only_if_faster=wanted is None,
            )
        except NotForKernelsError as error:
            reason = str(error)
            logger.info("%s is computed by torch: %s", name, error)
    if quantization != "none":
        raise UnsupportedModelError(
            f"{name}: its weights cannot be rounded to {quantization} here: {reason}. Give it a quantization_config of "
            "transformers (TorchAoConfig, BitsAndBytesConfig, ...), or load it as it is",
            member=name,
        )
    return LanguageModel(
        model,
        name=name,
        attention=config.attention,
        self_check=config.self_check,
        recorder=recorder,
        keep_weights=keep_weights,
    )


def _load_tuned_model(network: PlannedNetwork, progress: Callable[[int], None]) -> tuple[PreTrainedModel, bool]:
    """A network's model with the adapter that belongs inside, and whether layers of PEFT look at the weights of its own."""
    if network.adapter is None:
        return load_model(network, progress), False
    adapter = read_adapter(network.adapter, member=network.name)
    try:
        tuned = with_adapter_inside(lambda: load_model(network, progress), adapter, member=network.name)
    except (RuntimeError, MemoryError) as error:
        raise loading_error(error, network) from error
    return tuned.model, not tuned.is_merged


def load_model(network: PlannedNetwork, progress: Callable[[int], None]) -> PreTrainedModel:
    own, source = network.member, network.source
    if network.gguf is not None and own.quantization_config is None:
        assert network.config is not None, "torch has a configuration"
        assert network.dtype is not None, "torch has a dtype"
        return load_gguf_model(
            network.gguf,
            network.config,
            dtype=network.dtype,
            device=own.device_map or network.device,
            member=network.name,
            progress=progress,
        )
    arguments: dict[str, Any] = {
        "dtype": network.dtype,
        "trust_remote_code": own.trust_remote_code,
        "ignore_mismatched_sizes": True,  # the report names them, and then they are refused
    }
    if own.tensor_parallel:
        arguments |= loading_arguments()
    else:
        arguments["device_map"] = own.device_map or network.device
    if own.revision:
        arguments["revision"] = own.revision
    if source.gguf_file:
        arguments["gguf_file"] = source.gguf_file
    else:
        arguments["use_safetensors"] = True
    if own.quantization_config is not None:
        arguments["quantization_config"] = own.quantization_config
    loader: Any = AutoModelForCausalLM
    if network.model_class is not None:
        loader = network.model_class
        arguments["config"] = network.config
    try:
        model, info = loader.from_pretrained(source.location, output_loading_info=True, **arguments)
    except Exception as error:  # code of any model class or quantiser
        raise loading_error(error, network) from error
    check_loaded(info, network)
    return model


class LoadingDisplay:
    """A bar over the bytes of all networks on stderr, or a line per network where stderr is no terminal."""

    def __init__(self, plan: TrioPlan, progress: Progress, task: TaskID, *, lines: Console | None) -> None:
        self._plan = plan
        self._progress = progress
        self._task = task
        self._lines = lines
        self._done = 0

    def start(self, network: PlannedNetwork) -> Callable[[int], None]:
        """A network is loaded next. Returns what to call with the bytes of it that are there."""
        users = [member.name for member in self._plan.members.values() if member.network == network.name]
        text = (
            f"loading {network.source} ({gib(network.parameter_bytes)}, {network.type_name}, {network.runtime}) for "
            f"{', '.join(users)}"
        )
        before = self._done
        self._progress.update(self._task, description=text, completed=before)
        if self._lines is not None:
            self._lines.print(text, soft_wrap=True)
        self._done += network.parameter_bytes
        return lambda num_bytes: self._progress.update(self._task, completed=before + num_bytes)


@contextmanager
def _progress_display(plan: TrioPlan, config: EngineConfig) -> Iterator[LoadingDisplay]:
    console = Console(stderr=True)
    show = console.is_terminal if config.show_progress is None else config.show_progress
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # one display, not two over each other
    try:
        with Progress(
            *columns, console=console, transient=True, disable=not (show and console.is_terminal)
        ) as progress:
            task = progress.add_task("loading", total=sum(n.parameter_bytes for n in plan.networks.values()))
            lines = console if show and not console.is_terminal else None
            yield LoadingDisplay(plan, progress, task, lines=lines)
    finally:
        if had_bars:
            transformers_logging.enable_progress_bar()
