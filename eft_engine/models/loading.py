"""Weights into memory: every distinct network once, adapters on top, with checks before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel, modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

from eft_engine.config import EngineConfig
from eft_engine.errors import (
    CorruptWeightsError,
    LoadOutOfMemoryError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.planning import PlannedNetwork, TrioPlan
from eft_engine.models.process_group import RankChannel, num_ranks
from eft_engine.models.recording import recorder_for
from eft_engine.models.tensor_parallel import ShardedLanguageModel, follow, loading_arguments
from eft_engine.text.tokenizer import Tokenizer
from eft_engine.text.vocabulary import MemberVocabulary, SharedVocabulary, prove_vocabulary


@dataclass(frozen=True)
class TrioMember:
    """One member ready to run: a network, the name of its adapter on that network, and its tokenizer."""

    name: str
    network: LanguageModel
    adapter: str | None
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Trio:
    """All members in the order of `member_names`, and the vocabulary they share."""

    members: Mapping[str, TrioMember]
    vocabulary: SharedVocabulary

    @property
    def networks(self) -> list[LanguageModel]:
        """The distinct networks, the base's first."""
        return list(dict.fromkeys(member.network for member in self.members.values()))


def load_trio(plan: TrioPlan, config: EngineConfig) -> Trio:
    """Load what `plan` names.

    Raises:
        LoadOutOfMemoryError: the weights do not fit; nothing stays in memory.
        CorruptWeightsError: a file cannot be read, or tensors are missing or have other shapes than the architecture's.
        UnsupportedModelError: see `LanguageModel`.
        TensorParallelError: another rank could not load its part of a network.
    """
    networks: dict[str, LanguageModel] = {}
    adapters: dict[tuple[str, Path], str] = {}
    members: dict[str, TrioMember] = {}
    with _progress_display(plan, config) as advance:
        if plan.sharded:
            sharded, channel = _load_sharded(plan, config, advance)
            channel.open()
            for leading in sharded.values():
                leading.lead(channel)
            networks |= sharded
        else:
            _check_memory(plan.networks.values())
        try:
            for planned in plan.networks.values():
                if planned.name not in networks:
                    advance(planned)
                    networks[planned.name] = _network(_load_model(planned), planned.name, config, keep_weights=False)
            for member in plan.members.values():
                network, folder = networks[member.network], member.resolved.adapter
                if folder is not None and (member.network, folder) not in adapters:
                    adapters[member.network, folder] = network.add_adapter(folder, member=member.name)
                adapter = adapters[member.network, folder] if folder is not None else None
                members[member.name] = TrioMember(member.name, network, adapter, member.tokenizer)
        except BaseException:
            for network in networks.values():  # ranks that follow must not wait
                network.release()
            raise
    return Trio(members, plan.vocabulary)


def follow_trio(plan: TrioPlan, config: EngineConfig) -> None:
    """On a rank other than 0: hold this rank's part of what `plan` splits, and run it until rank 0 closes its engine.

    Raises:
        LoadError: as for `load_trio`.
        TensorParallelError: another rank could not load its part, is lost, or failed.
    """
    with _progress_display(plan, config) as advance:
        networks, channel = _load_sharded(plan, config, advance)
    follow(networks, channel)


def _load_sharded(
    plan: TrioPlan, config: EngineConfig, advance: Callable[[PlannedNetwork], None]
) -> tuple[dict[str, ShardedLanguageModel], RankChannel]:
    """On all ranks together: the networks that are split, before any other."""
    channel = RankChannel(timeout_s=config.tensor_parallel_timeout_s)
    networks: dict[str, ShardedLanguageModel] = {}
    with channel.agreement():
        _check_memory(plan.networks.values() if channel.rank == 0 else plan.sharded)
    for planned in plan.sharded:
        advance(planned)
        with channel.agreement():
            model = _load_model(planned)
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
    """
    for name, model in models.items():
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            raise UnsupportedModelError(
                f"{name}: {type(model).__name__} is split over several processes already, and rank 0 alone would wait for the "
                "others for ever; let Engine.load split it, with MemberConfig(tensor_parallel=True)",
                member=name,
            )
    vocabulary = prove_vocabulary(
        {
            name: MemberVocabulary(tokenizers[name], model.get_output_embeddings().weight.shape[0])
            for name, model in models.items()
        },
        mismatched_tokens=config.mismatched_tokens,
    )
    networks: dict[int, LanguageModel] = {}
    for name, model in models.items():
        if id(model) not in networks:
            networks[id(model)] = _network(model, name, config, keep_weights=True)
    members = {name: TrioMember(name, networks[id(model)], None, tokenizers[name]) for name, model in models.items()}
    return Trio(members, vocabulary)


def _network(model: PreTrainedModel, name: str, config: EngineConfig, *, keep_weights: bool) -> LanguageModel:
    return LanguageModel(
        model,
        name=name,
        attention=config.attention,
        self_check=config.self_check,
        recorder=recorder_for(model) if config.cuda_graphs else None,
        keep_weights=keep_weights,
    )


def _load_model(network: PlannedNetwork) -> PreTrainedModel:
    own, source = network.member, network.source
    arguments: dict[str, Any] = {
        "dtype": network.dtype,
        "trust_remote_code": own.trust_remote_code,
    }
    if own.tensor_parallel:
        arguments |= loading_arguments()
    else:
        arguments["device_map"] = own.device_map or network.device
    if own.revision:
        arguments["revision"] = own.revision
    if source.gguf_file:
        arguments["gguf_file"] = source.gguf_file
        arguments["quantization_config"] = own.quantization_config or GgufConfig(dequantize=True)
    else:
        arguments["use_safetensors"] = True
        if own.quantization_config is not None:
            arguments["quantization_config"] = own.quantization_config
    try:
        model, info = AutoModelForCausalLM.from_pretrained(source.location, output_loading_info=True, **arguments)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(network, error) from error
    except SafetensorError as error:
        raise _corrupt(network, str(error)) from error
    except ImportError as error:
        raise UnsupportedModelError(
            f"{network.name}: loading {source} needs a package that is not installed: {error}",
            member=network.name,
            source=str(source),
        ) from error
    except OSError as error:
        raise ModelNotFoundError(
            f"{network.name}: no safetensors weights of {source} could be read: {error}",
            member=network.name,
            source=str(source),
        ) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error) or "out of memory" in str(error):
            raise _out_of_memory(network, error) from error
        raise _corrupt(network, str(error)) from error
    problems = [
        f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, info[kind]))[:3])}"
        for kind in ("missing_keys", "mismatched_keys", "error_msgs")
        if info.get(kind)
    ]
    if problems:
        raise _corrupt(network, "; ".join(problems))
    return model


def _corrupt(network: PlannedNetwork, reason: str) -> CorruptWeightsError:
    return CorruptWeightsError(
        f"{network.name}: the weights of {network.source} are damaged or belong to another configuration ({reason}); "
        "download or save the model again",
        member=network.name,
        source=str(network.source),
    )


def _check_memory(networks: Iterable[PlannedNetwork]) -> None:
    """Refuse before reading, instead of being killed while reading. Spread and quantised networks are left to transformers."""
    needed: dict[str, int] = {}
    for network in networks:
        if network.member.device_map is None and network.member.quantization_config is None:
            # The ranks of a tensor-parallel network share a machine's memory, and have a GPU each.
            parts = num_ranks() if network.member.tensor_parallel and network.device != "cpu" else 1
            needed[network.device] = needed.get(network.device, 0) + network.parameter_bytes // parts
    for device, needed_bytes in needed.items():
        available_bytes = available_memory(device)
        if needed_bytes > available_bytes:
            raise LoadOutOfMemoryError(
                f"the weights need {_gib(needed_bytes)} on {device} and {_gib(available_bytes)} are free; use a smaller "
                "dtype (dtype='bfloat16'), a quantization_config, a device_map, or smaller models",
                needed_bytes=needed_bytes,
                available_bytes=available_bytes,
                device=device,
            )


def available_memory(device: str) -> int:
    """Free bytes of a device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _out_of_memory(network: PlannedNetwork, error: BaseException) -> LoadOutOfMemoryError:
    return LoadOutOfMemoryError(
        f"{network.name}: loading {network.source} ran out of memory on {network.device} ({error}); use a smaller dtype, "
        "a quantization_config, a device_map, or a smaller model",
        needed_bytes=network.parameter_bytes,
        available_bytes=None,
        device=network.device,
        member=network.name,
        source=str(network.source),
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


@contextmanager
def _progress_display(plan: TrioPlan, config: EngineConfig) -> Iterator[Any]:
    """A bar over the bytes of all networks on stderr, or a line per network where stderr is no terminal; yields a function to call
    before each network is loaded.
    """
    console = Console(stderr=True)
    show = console.is_terminal if config.show_progress is None else config.show_progress
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # one display, not two over each other
    own_gguf_bar = modeling_gguf_pytorch_utils.tqdm  # the only bar of loading that ignores that switch
    modeling_gguf_pytorch_utils.tqdm = transformers_logging.tqdm
    done = 0
    try:
        with Progress(
            *columns, console=console, transient=True, disable=not (show and console.is_terminal)
        ) as progress:
            task = progress.add_task("loading", total=sum(n.parameter_bytes for n in plan.networks.values()))

            def advance(network: PlannedNetwork) -> None:
                nonlocal done
                users = [member.name for member in plan.members.values() if member.network == network.name]
                text = f"loading {network.source} ({_gib(network.parameter_bytes)}) for {', '.join(users)}"
                progress.update(task, description=text, completed=done)
                if show and not console.is_terminal:
                    console.print(text, soft_wrap=True)
                done += network.parameter_bytes

            yield advance
    finally:
        modeling_gguf_pytorch_utils.tqdm = own_gguf_bar
        if had_bars:
            transformers_logging.enable_progress_bar()
