"""GGUF files of toy models: what llama.cpp's converter does to tensors, keys and vocabularies, for tiny models of eight families.

A file is metadata (keys and values), a table of tensors and their data. `GgufContents` holds those parts as they are written, so
that a test can also change one of them into nonsense before it writes the file.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType, LlamaFileType, TokenType
from gguf.constants import MODEL_ARCH_NAMES
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.toy import ToyTrio, make_model, make_tokenizer, shape_of

ALIGNMENT = 32
SCALARS = {  # numpy's name of a type -> GGUF's
    "uint8": GGUFValueType.UINT8,
    "int8": GGUFValueType.INT8,
    "uint16": GGUFValueType.UINT16,
    "int16": GGUFValueType.INT16,
    "uint32": GGUFValueType.UINT32,
    "int32": GGUFValueType.INT32,
    "float32": GGUFValueType.FLOAT32,
    "bool": GGUFValueType.BOOL,
    "uint64": GGUFValueType.UINT64,
    "int64": GGUFValueType.INT64,
    "float64": GGUFValueType.FLOAT64,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a file holds it: `shape` as torch counts it (the file reverses it), `kind` the number of its ggml type."""

    name: str
    shape: tuple[int, ...]
    kind: int
    data: bytes


@dataclass(frozen=True)
class GgufContents:
    """The parts of a GGUF file. A metadata value that is `bytes` is written as it is: the number of its type, then the value."""

    metadata: dict[str, Any]
    tensors: list[StoredTensor] = field(default_factory=list)

    def write(self, path: Path, *, version: int = 3, byte_order: Literal["<", ">"] = "<") -> Path:
        """Write the file; `byte_order` ">" is that of machines that llama.cpp does not run on (tensor data stay as they are)."""
        start = b"GGUF" + struct.pack(f"{byte_order}IQQ", version, len(self.tensors), len(self.metadata))
        keys = [_string(key, byte_order) + _typed(value, byte_order) for key, value in self.metadata.items()]
        table, data = [], bytearray()
        for tensor in self.tensors:
            shape = tuple(reversed(tensor.shape))
            numbers = struct.pack(f"{byte_order}I{len(shape)}QIQ", len(shape), *shape, tensor.kind, len(data))
            table.append(_string(tensor.name, byte_order) + numbers)
            data += _padded(tensor.data)
        path.write_bytes(_padded(b"".join([start, *keys, *table])) + data)
        return path

    def tensor(self, name: str) -> StoredTensor:
        """The tensor of that name."""
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def without(self, name: str) -> GgufContents:
        """The same file without one tensor."""
        return replace(self, tensors=[tensor for tensor in self.tensors if tensor.name != name])

    def with_tensor(self, name: str, **changes: Any) -> GgufContents:
        """The same file with one tensor changed."""
        changed = replace(self.tensor(name), **changes)
        return replace(self, tensors=[changed if tensor.name == name else tensor for tensor in self.tensors])

    def with_added(self, tensor: StoredTensor) -> GgufContents:
        """The same file with one more tensor."""
        return replace(self, tensors=[*self.tensors, tensor])

    def with_keys(self, changes: Mapping[str, Any]) -> GgufContents:
        """The same file with other metadata; None takes a key away."""
        merged = {**self.metadata, **changes}
        return replace(self, metadata={key: value for key, value in merged.items() if value is not None})


def _padded(data: bytes | bytearray) -> bytes:
    return bytes(data) + b"\0" * (-len(data) % ALIGNMENT)


def _string(text: str, order: Literal["<", ">"]) -> bytes:
    encoded = text.encode()
    return struct.pack(f"{order}Q", len(encoded)) + encoded


def _typed(value: Any, order: Literal["<", ">"]) -> bytes:
    """A metadata value with its type in front: bool, int (uint32), float (float32), str, their lists, or numpy's own types."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return struct.pack(f"{order}I", GGUFValueType.STRING) + _string(value, order)
    if isinstance(value, Sequence) and (not value or isinstance(value[0], str)):  # GGUFWriter leaves empty arrays out
        head = struct.pack(f"{order}IIQ", GGUFValueType.ARRAY, GGUFValueType.STRING, len(value))
        return head + b"".join(_string(text, order) for text in value)
    array = np.asarray(value)
    if not isinstance(value, np.generic | np.ndarray):  # Python's numbers are as wide as the converter writes them
        array = array.astype({"i": np.uint32, "f": np.float32, "b": np.bool_}[array.dtype.kind])
    head = struct.pack(f"{order}I", SCALARS[array.dtype.name])
    if array.ndim:
        head = struct.pack(f"{order}I", GGUFValueType.ARRAY) + head + struct.pack(f"{order}Q", len(array))
    return head + array.astype(array.dtype.newbyteorder(order)).tobytes()


@dataclass(frozen=True)
class Family:
    """How models of one type are written.

    `keys(config)` adds to the common metadata or overrides it; `transform(name, weight, config)` changes a weight or renames it.
    """

    architecture: gguf.MODEL_ARCH
    keys: Callable[[PreTrainedConfig], dict[str, Any]] = lambda config: {}
    transform: Callable[[str, torch.Tensor, PreTrainedConfig], tuple[str, torch.Tensor]] = lambda name, weight, config: (
        name,
        weight,
    )


def _permuted(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of each head from halves (transformers' rotary layout) to neighbouring pairs (llama's own)."""
    rows = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def _llama_weight(name: str, weight: torch.Tensor, config: PreTrainedConfig) -> tuple[str, torch.Tensor]:
    if ".q_proj." in name:
        return name, _permuted(weight, config.num_attention_heads)
    if ".k_proj." in name:
        return name, _permuted(weight, config.num_key_value_heads)
    return name, weight


def _gemma3_keys(config: PreTrainedConfig) -> dict[str, Any]:
    return {
        "rope.freq_base": float(config.rope_parameters["full_attention"]["rope_theta"]),
        "rope.freq_base_swa": float(config.rope_parameters["sliding_attention"]["rope_theta"]),
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types],
    }


def _gemma3_weight(name: str, weight: torch.Tensor, config: PreTrainedConfig) -> tuple[str, torch.Tensor]:
    """Norms are stored as 1 + weight. llama.cpp divides scores by sqrt(head_dim), so the norm of q carries what is missing."""
    if not name.endswith("norm.weight"):
        return name, weight
    stored = weight + 1
    if name.endswith("q_norm.weight"):
        stored = stored * (config.head_dim / config.query_pre_attn_scalar) ** 0.5
    return name, stored


def _lfm2_keys(config: PreTrainedConfig) -> dict[str, Any]:
    heads = [config.num_key_value_heads if kind == "full_attention" else 0 for kind in config.layer_types]
    return {
        "attention.head_count_kv": np.array(heads, dtype=np.int32),
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "shortconv.l_cache": config.conv_L_cache,
    }


def _lfm2_weight(name: str, weight: torch.Tensor, config: PreTrainedConfig) -> tuple[str, torch.Tensor]:
    return name, weight.squeeze(1) if name.endswith("conv.conv.weight") else weight


def _falcon_h1_keys(config: PreTrainedConfig) -> dict[str, Any]:
    return {
        "ssm.conv_kernel": config.mamba_d_conv,
        "ssm.inner_size": config.mamba_d_ssm,
        "ssm.state_size": config.mamba_d_state,
        "ssm.time_step_rank": config.mamba_n_heads,
        "ssm.group_count": config.mamba_n_groups,
    }


def _falcon_h1_weight(name: str, weight: torch.Tensor, config: PreTrainedConfig) -> tuple[str, torch.Tensor]:
    """Mamba-2's parameters; the multipliers of the configuration have to be 1."""
    if name.endswith(".A_log"):
        return name, -weight.exp()[:, None]
    if name.endswith("mamba.D"):
        return name, weight[:, None]
    if name.endswith(".dt_bias"):
        return name.replace(".dt_bias", ".dt_proj.bias"), weight
    if name.endswith("conv1d.weight"):
        return name, weight.squeeze(1)
    return name, weight


FAMILIES = {
    "llama": Family(gguf.MODEL_ARCH.LLAMA, transform=_llama_weight),
    "mistral": Family(gguf.MODEL_ARCH.LLAMA, transform=_llama_weight),  # its sliding window has no key
    "qwen2": Family(gguf.MODEL_ARCH.QWEN2),
    "qwen3": Family(gguf.MODEL_ARCH.QWEN3),
    "phi3": Family(
        gguf.MODEL_ARCH.PHI3,
        lambda config: {
            "rope.scaling.original_context_length": config.max_position_embeddings,
            "attention.sliding_window": 0,
        },
    ),
    "gemma3_text": Family(gguf.MODEL_ARCH.GEMMA3, _gemma3_keys, _gemma3_weight),
    "lfm2": Family(gguf.MODEL_ARCH.LFM2, _lfm2_keys, _lfm2_weight),
    "falcon_h1": Family(gguf.MODEL_ARCH.FALCON_H1, _falcon_h1_keys, _falcon_h1_weight),
}
GGUF_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3")
HYBRID_ARCHITECTURES = ("lfm2", "falcon_h1")  # short convolutions beside attention; Mamba-2 beside attention


def gguf_contents(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None, *, file_type: str = "F32"
) -> GgufContents:
    """A model as the parts of a GGUF file: matrices in `file_type` (F32, F16, BF16, Q8_0, Q4_0, ...), vectors in F32."""
    family = FAMILIES[model.config.model_type]
    metadata = _metadata(model.config, family, file_type) | _vocabulary(tokenizer, model.config.vocab_size)
    return GgufContents(metadata, list(_tensors(model, family, GGMLQuantizationType[file_type])))


def write_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast | None,
    path: Path,
    *,
    file_type: str = "F32",
    changes: Mapping[str, Any] = {},
) -> Path:
    """Write a model as a GGUF file. `changes` sets metadata keys (as they stand in the file); None takes a key away."""
    return gguf_contents(model, tokenizer, file_type=file_type).with_keys(changes).write(path)


def _metadata(config: PreTrainedConfig, family: Family, file_type: str) -> dict[str, Any]:
    architecture = MODEL_ARCH_NAMES[family.architecture]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    own = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "rope.dimension_count": head_dim,
        "rope.freq_base": config.rope_parameters.get("rope_theta"),
        "vocab_size": config.vocab_size,
    }
    own |= family.keys(config)
    general = {
        "general.architecture": architecture,
        "general.name": "toy",  # llama.cpp and transformers treat some names in their own ways
        "general.file_type": int(LlamaFileType["ALL_F32" if file_type == "F32" else f"MOSTLY_{file_type}"]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
    }
    return general | {f"{architecture}.{key}": value for key, value in own.items() if value is not None}


def _vocabulary(tokenizer: PreTrainedTokenizerFast | None, vocab_size: int) -> dict[str, Any]:
    if tokenizer is None:
        return {"tokenizer.ggml.model": "none"}
    known = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    kinds = [TokenType.UNUSED] * vocab_size
    for token_id in known:
        kinds[token_id] = TokenType.CONTROL if token_id in special else TokenType.NORMAL
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [known.get(token_id, f"[PAD{token_id}]") for token_id in range(vocab_size)],
        "tokenizer.ggml.token_type": np.array(kinds, dtype=np.int32),
        "tokenizer.ggml.merges": [],  # llama.cpp wants the key
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.add_bos_token": False,
    }
    if tokenizer.chat_template:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata


def _tensors(model: PreTrainedModel, family: Family, kind: GGMLQuantizationType) -> Iterator[StoredTensor]:
    names = gguf.get_tensor_name_map(family.architecture, model.config.num_hidden_layers)
    tied = model.config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        name, weight = family.transform(name, weight.detach().float(), model.config)
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert gguf_name is not None, f"{name} has no name in {family.architecture.name}"
        array = weight.contiguous().numpy()
        narrow = array.ndim == 1 or any(word in gguf_name for word in ("norm", "conv.", "conv1d", "ssm_a", "ssm_d"))
        own = GGMLQuantizationType.F32 if narrow else kind
        yield StoredTensor(gguf_name, array.shape, int(own), gguf.quants.quantize(array, own).tobytes())


def write_split(path: Path, num_parts: int) -> list[Path]:
    """Write the parts of a file beside it, `name-00001-of-0000N.gguf` and so on, and give their paths. The first has all keys."""
    reader = gguf.GGUFReader(path)
    own = [name for name in reader.fields if not name.startswith("GGUF.")]
    metadata = {name: b"".join(part.tobytes() for part in reader.fields[name].parts[2:]) for name in own}
    tensors = [
        StoredTensor(
            tensor.name,
            tuple(int(size) for size in reversed(tensor.shape)),
            int(tensor.tensor_type),
            tensor.data.tobytes(),
        )
        for tensor in reader.tensors
    ]
    bounds = np.linspace(0, len(tensors), num_parts + 1).astype(int)
    paths = []
    for index, (start, stop) in enumerate(itertools.pairwise(bounds)):
        split = {
            "split.no": np.uint16(index),
            "split.count": np.uint16(num_parts),
            "split.tensors.count": np.int32(len(tensors)),
        }
        part = path.with_name(f"{path.stem}-{index + 1:05d}-of-{num_parts:05d}.gguf")
        keys = metadata if index == 0 else {}
        paths.append(GgufContents({**keys, **split}, tensors[start:stop]).write(part))
    return paths


def make_hybrid(architecture: str, *, hidden_size: int = 32, seed: int = 0, context_len: int = 256) -> PreTrainedModel:
    """A random model in float32 that keeps a state beside its keys and values: two layers."""
    shape = shape_of(hidden_size, context_len=context_len)
    mamba = {"mamba_d_ssm": 2 * hidden_size, "mamba_n_heads": 4, "mamba_d_state": 16, "mamba_n_groups": 1}
    builders = {
        "lfm2": lambda: Lfm2ForCausalLM(
            Lfm2Config(**shape, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)
        ),
        "falcon_h1": lambda: FalconH1ForCausalLM(FalconH1Config(**shape, **mamba, head_dim=hidden_size // 4)),
    }
    torch.manual_seed(seed)
    return builders[architecture]().eval()


@dataclass(frozen=True)
class GgufTrio:
    """Three GGUF files, and the models that they were written from as judges."""

    base: Path
    tuned: Path
    reference: Path
    models: ToyTrio


def make_gguf_trio(
    folder: Path, architecture: str, *, file_type: str = "F32", context_len: int = 256, changes: Mapping[str, Any] = {}
) -> GgufTrio:
    """A base of hidden size 64 with a pair of hidden size 32, as `toy.make_trio` makes them.

    The judges are what the files say: without a window for mistral, rounded where `file_type` rounds.
    """
    make = make_hybrid if architecture in HYBRID_ARCHITECTURES else make_model
    sizes = {"base": (64, 1), "tuned": (32, 2), "reference": (32, 3)}
    models = {
        member: make(architecture, hidden_size=hidden_size, seed=seed, context_len=context_len)
        for member, (hidden_size, seed) in sizes.items()
    }
    trio = ToyTrio(**models, tokenizer=make_tokenizer())
    paths = {}
    for member, model in models.items():
        if architecture == "mistral":
            model.config.sliding_window = None
        _round(model, GGMLQuantizationType[file_type])
        paths[member] = write_gguf(
            model, trio.tokenizer, folder / f"{member}.gguf", file_type=file_type, changes=changes
        )
    return GgufTrio(**paths, models=trio)


@torch.no_grad()
def _round(model: PreTrainedModel, kind: GGMLQuantizationType) -> None:
    for parameter in model.parameters():
        if parameter.ndim == 2:
            stored = gguf.quants.quantize(parameter.numpy(), kind)
            parameter.copy_(torch.from_numpy(gguf.quants.dequantize(stored, kind)))
