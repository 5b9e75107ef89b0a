"""GGUF files as transformers models: the configuration, and the weights in the dtype that is wanted.

`from_pretrained(gguf_file=...)` reads every list of the vocabulary number by number (10 s for 150,000 tokens, several times for one
model). Here transformers sees the file's short metadata only, and is handed parameters that read themselves when they are needed.
"""

from __future__ import annotations

import re
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.integrations.gguf import is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from eft_engine.errors import CorruptWeightsError, LoadOutOfMemoryError, UnsupportedModelError
from eft_engine.models.gguf_file import ARRAY, MAGIC, SCALARS, STRING, GGUFFile
from eft_engine.models.gguf_rotary import divide_frequencies, unread_scaling
from eft_engine.models.gguf_tokenizer import end_token_ids
from eft_engine.models.memory import is_out_of_memory
from eft_engine.models.skeleton import build_skeleton

UNREAD_KEYS = {
    "qwen3": {"attention.key_length": "head_dim"},
    "qwen2moe": {
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    },
    "qwen3moe": {"expert_feed_forward_length": "moe_intermediate_size"},
}
"""Sizes that transformers does not read: it takes those of one model of the family, and no other fits."""


@dataclass(frozen=True)
class DtypeChoice:
    """What weights are best unpacked to, and why, for people."""

    dtype: torch.dtype
    reason: str


def fast_dtype(device: str) -> DtypeChoice:
    """bfloat16 where the device computes in it, else float32. Quantised weights have fewer digits than either.

    >>> fast_dtype("meta")
    DtypeChoice(dtype=torch.float32, reason='meta does not compute in bfloat16')
    """
    kind = torch.device(device).type
    if kind == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        fast, found = major >= 8, f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"
    elif kind == "cpu":
        fast, found = _cpu_has_bfloat16(), "this processor"
    else:
        fast, found = kind in ("mps", "xpu"), kind
    verb = "computes" if fast else "does not compute"
    return DtypeChoice(torch.bfloat16 if fast else torch.float32, f"{found} {verb} in bfloat16")


def config_from_gguf(file: GGUFFile, *, member: str) -> PreTrainedConfig:
    """The transformers configuration of a file's architecture and sizes; its `dtype` is None.

    Args:
        file: a file that `check_gguf_model` found nothing wrong with.
        member: whose it is, for messages.

    Raises:
        UnsupportedModelError: transformers does not know the architecture, or `gguf` is not installed.
        CorruptWeightsError: the metadata lack something that the configuration needs.
    """
    source = str(file.paths[0])
    if not _is_known(file.architecture):
        raise _unsupported(file, member, "it is not among those that it knows")
    if reason := unread_scaling(file):
        raise _unsupported(file, member, f"{reason}, which its reader passes over; llama.cpp computes it")
    try:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "short.gguf").write_bytes(b"".join(_short_header(file)))
            config = AutoConfig.from_pretrained(folder, gguf_file="short.gguf")
    except ImportError as error:
        raise _gguf_missing(file, member) from error
    except ValueError as error:
        raise _unsupported(file, member, str(error)) from error
    except Exception as error:  # what a missing or senseless value raises is up to the configuration's class
        raise CorruptWeightsError(
            f"{member}: the metadata of {source} are no configuration of a {file.architecture} model: {error!r}; download it again",
            member=member,
            source=source,
        ) from error
    for key, attribute in UNREAD_KEYS.get(file.architecture, {}).items():
        setattr(config, attribute, file.value(key, getattr(config, attribute)))
    if (getattr(config, "pad_token_id", None) or 0) >= config.vocab_size:
        config.pad_token_id = None  # Phi-3's default, where the file names none
    config.name_or_path = source
    return config


def load_gguf_model(
    file: GGUFFile,
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype,
    device: str | dict[str, Any],
    member: str,
    progress: Callable[[int], None],
) -> PreTrainedModel:
    """The model with all its weights, in evaluation mode. Beside them, a few MiB are needed, or the largest converted tensors.

    Args:
        file: where the weights are.
        config: as of `config_from_gguf`; it is not changed.
        dtype: of the weights in memory (norms that the architecture keeps in float32 aside).
        device: where they go; or which part goes where, as transformers' `device_map` has it.
        member: whose they are, for messages.
        progress: called with the bytes of weights that are ready so far, in `dtype`; from several threads, one at a time.

    Raises:
        CorruptWeightsError: tensors are missing, have other shapes than the architecture's or no place in it, or hold numbers that
            are not finite.
        UnsupportedModelError: transformers cannot build the model, or tensors are of a type that cannot be unpacked.
        LoadOutOfMemoryError: the weights do not fit.
    """
    source = str(file.paths[0])
    try:
        from eft_engine.models.gguf_tensors import LazyParameter, plan_parameters
    except ImportError as error:
        raise _gguf_missing(file, member) from error
    skeleton = build_skeleton(config, member=member, source=source)
    recipes = plan_parameters(file, skeleton, member=member)
    advance = _Counter(progress, dtype.itemsize)
    parameters = {
        name: LazyParameter(recipe, dtype=dtype, advance=advance, member=member) for name, recipe in recipes.items()
    }
    try:
        model, info = type(skeleton).from_pretrained(
            None, config=config, state_dict=parameters, dtype=dtype, device_map=device, output_loading_info=True
        )
    except OSError as error:
        raise CorruptWeightsError(
            f"{member}: {source} can no longer be read: {error}", member=member, source=source
        ) from error
    except (RuntimeError, ValueError, MemoryError) as error:
        if is_out_of_memory(error):
            raise _out_of_memory(skeleton, file, dtype, device, member, error) from error
        raise CorruptWeightsError(
            f"{member}: the weights of {source} cannot be put into a {type(skeleton).__name__}: {error}",
            member=member,
            source=source,
        ) from error
    assert not any(info.values()), f"the plan covers all parameters of {type(model).__name__}: {info}"
    model.config.name_or_path = config.name_or_path
    divide_frequencies(model, file, member=member)
    _set_end_tokens(model, file)
    return model


class _Counter:
    """Adds up numbers that are ready, and reports them as bytes, one report at a time."""

    def __init__(self, progress: Callable[[int], None], itemsize: int) -> None:
        self._progress = progress
        self._itemsize = itemsize
        self._num_ready = 0
        self._lock = threading.Lock()

    def __call__(self, num_numbers: int) -> None:
        with self._lock:
            self._num_ready += num_numbers
            self._progress(self._num_ready * self._itemsize)


def _cpu_has_bfloat16() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.9
        return bool(torch.cpu._is_avx512_bf16_supported())
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def _set_end_tokens(model: PreTrainedModel, file: GGUFFile) -> None:
    """Text ends where it ends in llama.cpp too; transformers takes over one token, and Gemma ends turns with another."""
    ends = sorted(end_token_ids(file))
    if model.generation_config is not None and ends:
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]


def _short_header(file: GGUFFile) -> Iterator[bytes]:
    """A GGUF file with the same metadata but the vocabulary's lists, and the same tensor names on empty tensors."""
    metadata = {
        key: value
        for key, value in file.metadata.items()
        if not (key.startswith("tokenizer.") and isinstance(value, list | np.ndarray))
    }
    # Of the tokens, transformers wants to know how many there are: newer architectures as a number, others as a length.
    num_tokens = file.vocab_size
    metadata["tokenizer.ggml.tokens"] = num_tokens if is_gguf_arch_supported(file.architecture) else " " * num_tokens
    yield MAGIC + struct.pack("<IQQ", 3, len(file.tensors), len(metadata))
    for key, value in metadata.items():
        yield _text(key) + _value(value)
    for name in file.tensors:
        yield _text(name) + struct.pack("<IQIQ", 1, 0, 0, 0)  # one dimension of length 0, float32, offset 0


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Any) -> bytes:
    """A metadata value behind its type, in the widest type of its kind."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_text, value))
    array = np.asarray(value)
    kind = {"b": 7, "u": 10, "i": 11, "f": 12}[array.dtype.kind]
    head = struct.pack("<IIQ", ARRAY, kind, array.size) if array.ndim else struct.pack("<I", kind)
    return head + array.astype(SCALARS[kind].format).tobytes()


def _is_known(architecture: str) -> bool:
    """Whether transformers loads the architecture, which it writes with other punctuation (qwen2_moe for qwen2moe)."""
    known = {re.sub("[-_]", "", name) for name in GGUF_SUPPORTED_ARCHITECTURES}
    return is_gguf_arch_supported(architecture) or re.sub("[-_]", "", architecture) in known


def _unsupported(file: GGUFFile, member: str, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{member}: {file.paths[0]} is of architecture {file.architecture!r}, which transformers does not load from GGUF "
        f"({reason}); use llama.cpp (pip install 'eft-engine[llama-cpp]') or the model's safetensors weights",
        member=member,
        source=str(file.paths[0]),
    )


def _gguf_missing(file: GGUFFile, member: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{member}: loading {file.paths[0]} needs a package that is not installed: pip install 'eft-engine[gguf]'",
        member=member,
        source=str(file.paths[0]),
    )


def _out_of_memory(
    skeleton: PreTrainedModel, file: GGUFFile, dtype: torch.dtype, device: Any, member: str, error: BaseException
) -> LoadOutOfMemoryError:
    return LoadOutOfMemoryError(
        f"{member}: loading {file.paths[0]} in {dtype} ran out of memory on {device} ({error}); use a smaller dtype, or a smaller "
        "model",
        needed_bytes=sum(parameter.numel() for parameter in skeleton.parameters()) * dtype.itemsize,
        available_bytes=None,
        device=str(device),
        member=member,
        source=str(file.paths[0]),
    )
