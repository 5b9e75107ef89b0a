"""Plans of networks: who will compute a member, what its configuration says, and how much memory its weights take."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig

from eft_engine.config import EngineConfig, MemberConfig, Quantization
from eft_engine.errors import InvalidOptionError, ModelNotFoundError, UnsupportedModelError
from eft_engine.models.adapter_plans import plan_adapter
from eft_engine.models.devices import check_device_map, resolve_device
from eft_engine.models.gguf_cache import check_cache_types, gguf_layers
from eft_engine.models.gguf_checks import check_gguf_model
from eft_engine.models.gguf_file import GGUFFile, read_gguf
from eft_engine.models.gguf_rotary import LONG_FACTORS
from eft_engine.models.gguf_weights import config_from_gguf, fast_dtype
from eft_engine.models.layers import layers_of
from eft_engine.models.llama_cpp.adapter_file import why_not_held
from eft_engine.models.llama_cpp.library import INSTALL, computes_on_gpu, threads_of, why_unavailable
from eft_engine.models.native.quantising import GROUP, held_share
from eft_engine.models.planned_network import PlannedNetwork
from eft_engine.models.process_group import accelerator_type, num_ranks
from eft_engine.models.self_check import WHAT_TO_DO
from eft_engine.models.skeleton import build_skeleton, load_config
from eft_engine.models.sources import ResolvedMember, Source, gguf_path
from eft_engine.models.support import notes_on, why_refused
from eft_engine.models.tensor_parallel import why_not_split
from eft_engine.models.text_model import TextModel, plan_text
from eft_engine.models.towers import describe_left_out, num_parameters
from eft_engine.models.weight_plans import plan_gguf_weights, plan_weights
from eft_engine.models.work_memory import widths_of

TORCH_ONLY = ("device", "device_map", "quantization_config", "quantization", "tensor_parallel")
"""Options of a member that only torch honours: who gives one wants torch."""

PACKED_ADVICE = "install what is missing, leave quantization_config out, or give a checkpoint that is not quantised"
"""What to do where packed weights cannot be held."""

logger = logging.getLogger(__name__)


class GGUFReader:
    """Reads each .gguf file once, however many members come from it."""

    def __init__(self) -> None:
        self._files: dict[tuple[Source, str | None], GGUFFile] = {}

    def read(self, role: str, member: ResolvedMember) -> GGUFFile | None:
        """The header of a member's file; None when it comes from somewhere else.

        Raises:
            LoadError: the file is missing, damaged, or holds no model.
        """
        source, revision = member.source, member.config.revision
        if source.gguf_file is None:
            return None
        if (source, revision) not in self._files:
            file = read_gguf(gguf_path(source, revision=revision, role=role), member=role)
            if file.kind == "adapter":
                raise ModelNotFoundError(
                    f"{role}: {source} is an adapter; say what it sits on with MemberConfig(source=<model>, adapter=<this file>)",
                    member=role,
                    source=str(source),
                )
            if file.kind != "model":
                raise UnsupportedModelError(
                    f"{role}: {source} holds no language model but {file.kind!r}", member=role, source=str(source)
                )
            check_gguf_model(file, member=role)
            self._files[source, revision] = file
        return self._files[source, revision]


def network_key(member: ResolvedMember, config: EngineConfig) -> tuple[Any, ...]:
    """Members with equal keys share one set of weights."""
    own = member.config
    return (
        member.source,
        own.revision,
        own.dtype or config.dtype,
        own.device or config.device,
        repr(own.device_map),
        repr(own.quantization_config),
        own.quantization or config.quantization,
        own.runtime or config.runtime,
        own.llama_cpp or config.llama_cpp,
        own.tensor_parallel,
    )


def plan_network(role: str, member: ResolvedMember, gguf: GGUFFile | None, config: EngineConfig) -> PlannedNetwork:
    """Decide who computes a member's network, and what that takes. Where torch has to compute a GGUF file, one line is logged.

    Raises:
        LoadError: its configuration cannot be read, or nobody here can compute it.
        InvalidOptionError: its device is not here.
    """
    runtime, notes = choose_runtime(role, member, gguf, config)
    if runtime == "llama.cpp":
        assert gguf is not None, "llama.cpp computes .gguf files alone"
        return _plan_llama_cpp(role, member, gguf, config, notes)
    for note in notes:
        logger.warning("%s (%s) runs %s", member.source, role, note)
    return _plan_torch(role, member, gguf, config, notes)


def choose_runtime(
    role: str, member: ResolvedMember, gguf: GGUFFile | None, config: EngineConfig
) -> tuple[Literal["torch", "llama.cpp"], tuple[str, ...]]:
    """Who computes a member, and sentences that say why where that is not plain.

    Raises:
        UnsupportedModelError: llama.cpp was asked for, and it is not here or cannot.
        InvalidOptionError: llama.cpp was asked for together with options that only torch honours.
    """
    own = member.config
    asked = own.runtime or config.runtime
    is_gguf = member.source.gguf_file is not None
    torch_only = [name for name in TORCH_ONLY if getattr(own, name)]
    if asked == "llama.cpp":
        if not is_gguf:
            raise UnsupportedModelError(
                f"{role}: {member.source} is no .gguf file, and llama.cpp runs nothing else; leave runtime at 'auto', or convert "
                "the model (llama.cpp's convert_hf_to_gguf.py)",
                member=role,
                source=str(member.source),
            )
        if own.merge:
            raise InvalidOptionError(
                f"{role}: merge=True is for torch, and runtime='llama.cpp' was asked for; leave runtime at 'auto', or merge the "
                "adapter, convert the merged model to GGUF, and give that file",
                option="merge",
                value=True,
            )
        if torch_only:
            raise InvalidOptionError(
                f"{role}: {', '.join(torch_only)} is for torch, and runtime='llama.cpp' was asked for; see LlamaCppOptions for "
                "what llama.cpp takes",
                option=torch_only[0],
                value=getattr(own, torch_only[0]),
            )
        reason = why_unavailable()
        if reason is not None:
            raise UnsupportedModelError(
                f"{role}: runtime='llama.cpp' was asked for and {reason}; {INSTALL}",
                member=role,
                source=str(member.source),
            )
        return "llama.cpp", ()
    if asked == "torch" or not is_gguf:
        return "torch", ()
    if torch_only:
        return "torch", (f"in torch, since {', '.join(torch_only)} was asked for",)
    reason = why_unavailable()
    device = resolve_device(config.device, member=role)
    if reason is None and torch.device(device).type != "cpu" and not computes_on_gpu():
        reason = f"{device} is to compute, and this llama.cpp was built for CPUs alone"
    if reason is not None:
        return "torch", (f"in torch, since {reason}; faster and ready sooner in llama.cpp: {INSTALL}",)
    if gguf is not None and member.adapter is not None and member.adapter.is_dir():
        if own.merge:
            return "torch", ("in torch, since merge=True was asked for",)
        reason = why_not_held(member.adapter, model=gguf, member=role)
        if reason is not None:
            return "torch", (f"in torch, since llama.cpp cannot hold the adapter: {reason}",)
    return "llama.cpp", ()


def _plan_llama_cpp(
    role: str, member: ResolvedMember, gguf: GGUFFile, config: EngineConfig, notes: tuple[str, ...]
) -> PlannedNetwork:
    options = member.config.llama_cpp or config.llama_cpp
    check_cache_types(role, gguf, options)
    num_threads, _ = threads_of(options)
    planned = PlannedNetwork(
        name=role,
        source=member.source,
        member=member.config,
        runtime="llama.cpp",
        architecture=gguf.architecture,
        num_parameters=gguf.num_parameters,
        parameter_bytes=gguf.tensor_bytes,
        type_name=gguf.type_name,
        device="cpu",
        logits_width=gguf.vocab_size,
        context_len=gguf.context_len,
        layers=gguf_layers(gguf, options),
        gguf=gguf,
        llama_cpp=options,
    )
    layers = "all layers" if options.n_gpu_layers in (None, -1) else f"{options.n_gpu_layers} layers"
    where = f"{layers} on a GPU" if computes_on_gpu() and options.n_gpu_layers != 0 else f"{num_threads} threads"
    notes = (*notes, f"in llama.cpp: {where}, keys {options.cache_type_k}, values {options.cache_type_v}")
    requested = member.config.dtype or config.dtype
    if requested != "auto":
        notes = (*notes, f"dtype={requested!r} is for torch; llama.cpp holds the types of the file")
    if config.quantization != "none":
        notes = (*notes, f"quantization={config.quantization!r} is for torch; llama.cpp holds the types of the file")
    if LONG_FACTORS in gguf.tensors:
        original = gguf.value("rope.scaling.original_context_length", gguf.context_len)
        is_long = min(gguf.context_len, config.max_context_len or gguf.context_len) > original
        planned = replace(planned, original_context_len=1 if is_long else gguf.context_len + 2**24)
        kind, other = ("long", f"; max_context_len={original} takes those for short ones") if is_long else ("short", "")
        notes = (*notes, f"rotary factors for {kind} texts, for texts of any length{other}")
    if planned.has_state:
        notes = (*notes, "some layers keep a state: after drafts that were wrong it is restored from a copy")
    return replace(planned, notes=notes)


def _plan_torch(
    role: str, member: ResolvedMember, gguf: GGUFFile | None, config: EngineConfig, notes: tuple[str, ...]
) -> PlannedNetwork:
    own, source = member.config, member.source
    if gguf is None:
        model_config = load_config(
            source.location,
            member=role,
            source=str(source),
            revision=own.revision,
            trust_remote_code=own.trust_remote_code,
        )
        text = plan_text(model_config, member=role, source=str(source), trust_remote_code=own.trust_remote_code)
    else:
        model_config = config_from_gguf(gguf, member=role)
        text = TextModel(build_skeleton(model_config, member=role, source=str(source)), model_config)
    text_config = text.config.get_text_config()
    device = resolve_device(own.device or config.device, member=role)
    if own.device_map is not None:
        check_device_map(own.device_map, member=role)
    requested = own.dtype or config.dtype
    if gguf is None:
        weights = plan_weights(
            text, model_config, location=source.location, member=own, requested=requested, device=device
        )
    else:
        choice = fast_dtype(device)
        if requested == "auto":
            notes = (*notes, f"{str(choice.dtype).removeprefix('torch.')}: {choice.reason}")
        dtype = choice.dtype if requested == "auto" else getattr(torch, requested)
        weights = plan_gguf_weights(text, gguf, member=own, dtype=dtype)
    if own.tensor_parallel:
        _check_tensor_parallel(role, source, text.config, device)
    if text.left_out:
        notes = (*notes, describe_left_out(text.left_out, weights.dtype.itemsize))
    fit = plan_adapter(role, member, text.skeleton)
    held = fit.skeleton
    refused = why_refused(held)
    quantization = own.quantization or config.quantization
    unsupported = refused or weights.problem or _why_not_rounded(quantization, own, device)
    held_bytes = weights.held_bytes + fit.num_added * weights.dtype.itemsize
    rounded_bytes = held_bytes
    if quantization != "none":
        rounded_bytes = int(held_bytes * held_share(quantization, weights.dtype))
        notes = (*notes, f"its weights are rounded to {quantization} while it is loaded, in groups of {GROUP}")
    if unsupported is None:
        notes = (*notes, *notes_on(held))
    return PlannedNetwork(
        name=role,
        source=source,
        member=own,
        runtime="torch",
        architecture=type(text.skeleton).__name__,
        num_parameters=num_parameters(held),
        parameter_bytes=rounded_bytes,
        loading_bytes=held_bytes - rounded_bytes,
        type_name=weights.type_name if quantization == "none" else quantization,
        device=device,
        logits_width=held.get_output_embeddings().weight.shape[0],
        context_len=getattr(text_config, "max_position_embeddings", None) or 0,
        config=text.config,
        model_class=text.model_class,
        left_out_bytes=weights.left_out_bytes,
        left_out_parameters=sum(text.left_out.values()),
        stored_bytes=weights.stored_bytes,
        layers=layers_of(held, weights.dtype),
        unsupported=unsupported,
        what_to_do=WHAT_TO_DO if refused else PACKED_ADVICE,
        dtype=weights.dtype,
        widths=None if unsupported else widths_of(held, weights.dtype),
        gguf=gguf,
        notes=(*notes, *weights.notes, *text.notes),
        adapter=member.adapter if fit.why_own is not None else None,
        why_merged=fit.why_own,
        adapter_notes=fit.notes,
    )


def _why_not_rounded(quantization: Quantization, own: MemberConfig, device: str) -> str | None:
    if quantization == "none":
        return None
    if own.quantization_config is not None:
        return f"its weights are packed by its quantization_config and cannot be rounded to {quantization} besides"
    if own.tensor_parallel or own.device_map is not None or torch.device(device).type != "cpu":
        return f"weights are rounded to {quantization} on a CPU alone, and it lies elsewhere; a quantization_config does it there"
    return None


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
