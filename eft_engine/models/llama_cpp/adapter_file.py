"""LoRA adapters for llama.cpp: folders of PEFT are written as GGUF files, and GGUF adapters are checked.

    PEFT folder                                                GGUF adapter
    model.layers.0.self_attn.q_proj.lora_A.weight [rank, in]   blk.0.attn_q.weight.lora_a [rank, in]
    model.layers.0.self_attn.q_proj.lora_B.weight [out, rank]  blk.0.attn_q.weight.lora_b [out, rank]
    model.embed_tokens.lora_embedding_A [rank, vocab]          token_embd.weight.lora_a [vocab, rank]
    model.embed_tokens.lora_embedding_B [hidden, rank]         token_embd.weight.lora_b [hidden, rank]
    scaling of each layer, from ranks, alphas and patterns     adapter.lora.alpha for all; a layer's scaling is alpha / rank

What is written is what llama.cpp's convert_lora_to_gguf.py writes, with every other scaling multiplied into B.

llama.cpp sets an adapter on a context, not on rows of a batch, and so its rules are not those of `adapters.check_adapter`. It holds
more: LoRA on the output layer and on the embeddings, if the file has an output layer of its own. It holds less: B has no bias, and
only some matrices can have an adapter; it says nothing when it passes over the others. It believes values and some shapes, and what
does not fit then ends the process. So all of it is checked here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eft_engine.errors import CorruptWeightsError, UnsupportedAdapterError
from eft_engine.models.adapter_folder import read_adapter_config
from eft_engine.models.adapter_kinds import beyond_lora, why_never
from eft_engine.models.gguf_file import GGML_TYPES, GGUFFile, GGUFTensor, read_gguf

ROWS_IN_PAIRS = ("arcee", "granite", "llama", "mistral3", "olmo", "smollm3")
"""Architectures whose files have the rows of q and k in another order than transformers: their rotary embedding turns row 2i of a
head with row 2i + 1, and that of transformers row i with row i + head_dim / 2."""
ROWS_AS_THEY_ARE = (
    *("cohere2", "command-r", "exaone4", "gemma", "gemma2", "gemma3", "gpt2", "nemotron", "olmo2"),
    *("phi2", "phi3", "qwen2", "qwen3", "seed_oss", "stablelm", "starcoder2"),
)
"""Architectures whose files have matrices as transformers has them."""
EMBEDDINGS, OUTPUT = "token_embd.weight", "output.weight"
LAYERS = re.compile(r"blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down))\.weight|output\.weight|token_embd\.weight")
"""What llama.cpp multiplies with LoRA in all of these architectures (`build_lora_mm`, `build_inp_embd` in src/llama-graph.cpp)."""
MERGE = (
    "Leave runtime at 'auto', and this member runs in torch, with the adapter in a network of its own; or merge it (PEFT's "
    "merge_and_unload), convert the merged model to GGUF, and give that file instead."
)
VALUE_TYPES = ("F32", "F16", "BF16", "Q8_0")
"""Types that convert_lora_to_gguf.py writes."""


def why_not_held(folder: Path, *, model: GGUFFile, member: str) -> str | None:
    """Why llama.cpp cannot hold the adapter that PEFT saved in `folder`; None: it can. Other errors: as `check_peft_adapter`."""
    try:
        check_peft_adapter(folder, model=model, member=member)
    except UnsupportedAdapterError as error:
        if error.reason is None:
            raise
        return error.reason
    return None


def check_peft_adapter(folder: Path, *, model: GGUFFile, member: str) -> None:
    """Find out whether `write_gguf_adapter` can write the LoRA that PEFT saved in `folder`; its values are not read.

    Raises:
        UnsafeWeightsError: there are only pickled weights.
        CorruptWeightsError: files are missing or damaged, or shapes are those of another model.
        UnsupportedAdapterError: it does more than LoRA, or llama.cpp has no place for a part of it; or gguf is not installed.
    """
    with _opened(_Source(folder, member), model):
        pass


def write_gguf_adapter(folder: Path, target: Path, *, model: GGUFFile, member: str) -> Path:
    """Write the LoRA that PEFT saved in `folder` as a GGUF adapter for a model's file; returns `target`.

    Values become float32. Nothing is written unless the whole adapter can be held.

    Args:
        folder: adapter_config.json and adapter_model.safetensors.
        target: the file to write.
        model: the model that the adapter was trained on.
        member: whose adapter it is, for messages.

    Raises:
        UnsafeWeightsError, UnsupportedAdapterError: see `check_peft_adapter`.
        CorruptWeightsError: likewise, or values are not finite.
    """
    source = _Source(folder, member)
    arrays: dict[str, Any] = {}
    with _opened(source, model) as (file, layers, scaling):
        for layer in layers:
            down, up = file.get_tensor(layer.down), file.get_tensor(layer.up)
            arrays |= _convert(layer, down, up, factor=scaling.of(layer.module)[1], model=model, source=source)
    gguf = source.gguf()
    writer = gguf.GGUFWriter(target, model.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, scaling.alpha)
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def check_gguf_adapter(path: Path, *, model: GGUFFile, member: str) -> GGUFFile:
    """Read a GGUF adapter, header and values, and find out whether llama.cpp can hold it on a model.

    Raises:
        ModelNotFoundError: there is no such file.
        CorruptWeightsError: it is damaged, values are not finite, or shapes are those of another model.
        UnsupportedAdapterError: it is no LoRA for this architecture, or llama.cpp has no place for a part of it; or gguf is not
            installed.
    """
    source = _Source(path, member)
    gguf = source.gguf()
    adapter = read_gguf(path, member=member)
    source.refuse(_other_than_lora(adapter, model), "Give a LoRA for this model as convert_lora_to_gguf.py writes it.")
    source.refuse(_unknown_architecture(model))
    reader = gguf.GGUFReader(path)
    alpha = reader.fields.get(gguf.Keys.Adapter.LORA_ALPHA)
    if alpha is not None and (alpha.types != [gguf.GGUFValueType.FLOAT32] or not math.isfinite(alpha.contents())):
        raise source.corrupt(f"adapter.lora.alpha is {alpha.contents()} ({alpha.types[0].name}), not a finite FLOAT32")
    for place, (down, up) in _find_pairs(adapter, model, source).items():
        rank = max(1, _as_matrix(up.shape)[-1])
        for tensor, expected in zip((down, up), _shapes(model.tensors[place], rank), strict=True):
            source.check_shape(tensor.name, _as_matrix(tensor.shape), expected)
    for tensor in reader.tensors:
        source.check_finite(tensor.name, bool(np.isfinite(gguf.dequantize(tensor.data, tensor.tensor_type)).all()))
    return adapter


@dataclass(frozen=True)
class _Source:
    """Where an adapter lies and whose it is: raises what is wrong with it."""

    path: Path
    member: str

    def gguf(self) -> Any:
        """The library of that name, which an extra installs."""
        try:
            import gguf
        except ImportError as error:
            raise UnsupportedAdapterError(
                f"{self.member}: the adapter in {self.path} needs gguf: pip install 'eft-engine[llama-cpp]'",
                member=self.member,
                source=str(self.path),
            ) from error
        return gguf

    def refuse(self, reasons: Sequence[str], advice: str = MERGE) -> None:
        """Raise an UnsupportedAdapterError that has the first reasons, if there are any."""
        if not reasons:
            return
        reason = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
        raise UnsupportedAdapterError(
            f"{self.member}: the adapter in {self.path} cannot be held by llama.cpp: {reason}. {advice}",
            member=self.member,
            source=str(self.path),
            reason=reason,
        )

    def corrupt(self, reason: str) -> CorruptWeightsError:
        return CorruptWeightsError(
            f"{self.member}: the adapter in {self.path} does not fit the model: {reason}",
            member=self.member,
            source=str(self.path),
        )

    def check_shape(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            raise self.corrupt(f"{name} has the shape {list(found)}, and {list(expected)} is expected")

    def check_finite(self, name: str, finite: bool) -> None:
        if not finite:
            raise self.corrupt(f"{name} has values that are not finite numbers; download it again")


@dataclass(frozen=True)
class _Layer:
    """A module that an adapter of PEFT changes: the names of its A and B in the file, and the tensor of the model."""

    module: str
    down: str
    up: str
    tensor: GGUFTensor

    @property
    def is_embeddings(self) -> bool:
        """Whether a token picks a column of A; the file has these as rows."""
        return self.tensor.name == EMBEDDINGS


@dataclass(frozen=True)
class _Scaling:
    """The scaling of each module in an adapter of PEFT, and `alpha`, which the GGUF file has for all of them."""

    alpha: float
    config: Mapping[str, Any]

    @classmethod
    def read(cls, config: Mapping[str, Any], source: _Source) -> _Scaling:
        ranks, alphas = [config["r"]], [config.get("lora_alpha", 8)]
        for pattern, numbers in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
            try:
                for name, number in (config.get(pattern) or {}).items():
                    re.compile(name)
                    numbers.append(number)
            except (AttributeError, re.error) as error:
                raise source.corrupt(
                    f"{pattern} must map expressions for names of modules to numbers ({error})"
                ) from error
        for rank in ranks:
            if type(rank) is not int or rank < 1:
                raise source.corrupt(f"a rank is {rank!r} in adapter_config.json and must be a whole number from 1 on")
        for alpha in alphas:
            if type(alpha) not in (int, float) or not math.isfinite(alpha):
                raise source.corrupt(f"an alpha is {alpha!r} in adapter_config.json and must be a finite number")
        return cls(float(alphas[0]) or 1.0, config)  # llama.cpp takes 0 for a scaling of 1

    def of(self, module: str) -> tuple[int, float]:
        """The module's rank, and its scaling as a multiple of `alpha` / rank: 1.0 if nothing is special about it."""
        rank = self._value("rank_pattern", module, self.config["r"])
        alpha = self._value("alpha_pattern", module, self.config.get("lora_alpha", 8))
        return rank, alpha / self.alpha * (math.sqrt(rank) if self.config.get("use_rslora") else 1.0)

    def _value(self, pattern: str, module: str, default: Any) -> Any:
        values = self.config.get(pattern)
        if not values:
            return default
        from peft.utils.other import get_pattern_key  # takes a while to import, and most adapters have no patterns

        return values.get(get_pattern_key(values.keys(), module), default)


@contextmanager
def _opened(source: _Source, model: GGUFFile) -> Iterator[tuple[Any, list[_Layer], _Scaling]]:
    """An adapter of PEFT with everything checked but its values: its open file, its layers, and their scaling."""
    config = read_adapter_config(source.path, member=source.member)
    if (never := why_never(config)) is not None:
        source.refuse([never], "Nor can another runtime.")
    reasons = beyond_lora(config)
    if config.get("lora_bias"):
        reasons.append("its B has a bias (lora_bias)")
    source.refuse([*reasons, *_unknown_architecture(model)])
    if "r" not in config:
        raise source.corrupt("adapter_config.json has no rank (r)")
    names = _tensor_names(model, source)
    scaling = _Scaling.read(config, source)
    try:
        with safe_open(source.path / "adapter_model.safetensors", framework="pt") as file:
            layers = _find_layers(list(file.keys()), names, model, source)
            if missing := _missing(layers, config, model):
                raise source.corrupt(
                    f"adapter_config.json names layers of which the file has nothing ({', '.join(missing[:3])})"
                )
            for layer in layers:
                down, up = _shapes(layer.tensor, scaling.of(layer.module)[0])
                for key, expected in ((layer.down, down[::-1] if layer.is_embeddings else down), (layer.up, up)):
                    source.check_shape(key, tuple(file.get_slice(key).get_shape()), expected)
            yield file, layers, scaling
    except (OSError, SafetensorError) as error:
        raise source.corrupt(f"adapter_model.safetensors cannot be read ({error}); download it again") from error


def _missing(layers: Sequence[_Layer], config: Mapping[str, Any], model: GGUFFile) -> list[str]:
    """Tensors of the model that plain names in the configuration mean, and that the file leaves out: a shallower model's."""
    targets = config.get("target_modules")
    if not isinstance(targets, list) or config.get("layers_to_transform") is not None or config.get("exclude_modules"):
        return []
    meant = [layer.tensor.name.split(".", 2) for layer in layers if layer.module.rpartition(".")[2] in targets]
    kinds = {parts[2] for parts in meant if parts[0] == "blk"}
    found = {layer.tensor.name for layer in layers}
    return [
        name
        for name in model.tensors
        if name.startswith("blk.") and name.split(".", 2)[2] in kinds and name not in found
    ]


def _unknown_architecture(model: GGUFFile) -> list[str]:
    known = (*ROWS_IN_PAIRS, *ROWS_AS_THEY_ARE)
    if model.architecture in known:
        return []
    return [f"the model's architecture is {model.architecture}, and adapters are known for {', '.join(sorted(known))}"]


def _other_than_lora(adapter: GGUFFile, model: GGUFFile) -> list[str]:
    """What a GGUF file says about itself that a LoRA for the model does not say."""
    if adapter.kind != "adapter":
        return [f"the file is of type {adapter.kind} (architecture {adapter.architecture or 'unknown'}), not adapter"]
    kind = adapter.metadata.get("adapter.type")
    return [
        reason
        for found, reason in (
            (kind != "lora", f"it is of type {kind} (adapter.type), not lora"),
            (
                adapter.architecture != model.architecture,
                f"it is for models of the architecture {adapter.architecture}, and this one is of {model.architecture}",
            ),
            ("adapter.alora.invocation_tokens" in adapter.metadata, "it waits for invocation tokens (aLoRA)"),
            (len(adapter.paths) > 1, f"it is split into {len(adapter.paths)} files"),
        )
        if found
    ]


def _tensor_names(model: GGUFFile, source: _Source) -> Any:
    """What llama.cpp calls the modules of transformers: `get_name(module)`, None for those it does not know."""
    gguf = source.gguf()
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    if model.architecture not in numbers:
        source.refuse([f"the installed gguf does not know {model.architecture}"], "Install a newer one.")
    return gguf.get_tensor_name_map(numbers[model.architecture], int(model.value("block_count", 0)))


def _find_layers(keys: Sequence[str], names: Any, model: GGUFFile, source: _Source) -> list[_Layer]:
    """The layers that a file of PEFT changes; raises if one of them has no place, or if there is something else in it."""
    halves: dict[str, dict[str, str]] = {}
    reasons = []
    for key in keys:
        found = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_(?:([AB])\.weight|embedding_([AB]))", key)
        if found:
            halves.setdefault(found[1], {})[found[2] or found[3]] = key
        else:
            whole = " (leave out whole layers with save_pretrained(save_embedding_layers=False))"
            reasons.append(f"{key} is neither A nor B of a LoRA{'' if '.lora_' in key else whole}")
    layers: dict[str, _Layer] = {}
    for module, own in halves.items():
        if len(own) == 1:
            raise source.corrupt(f"{next(iter(own.values()))} is there without its other half")
        place = f"{names.get_name(module.replace('language_model.', ''))}.weight"
        if reason := _no_place(place, model):
            reasons.append(f"{module} {reason}")
        elif place.endswith(".attn_qkv.weight") and model.architecture in ROWS_IN_PAIRS:
            reasons.append(f"{module} has the rows of q, k and v together")
        elif place in layers:
            raise source.corrupt(f"{module} and {layers[place].module} are both {place}")
        else:
            layers[place] = _Layer(module, own["A"], own["B"], model.tensors[place])
    source.refuse(reasons)
    if not layers:
        raise source.corrupt("it has no weights")
    return list(layers.values())


def _find_pairs(adapter: GGUFFile, model: GGUFFile, source: _Source) -> dict[str, tuple[GGUFTensor, GGUFTensor]]:
    """A and B of a GGUF adapter by the tensor of the model that they change; raises if there is something else in it."""
    halves: dict[str, dict[str, GGUFTensor]] = {}
    reasons = []
    for name, tensor in adapter.tensors.items():
        place, _, half = name.rpartition(".lora_")
        kind = GGML_TYPES[tensor.ggml_type].name
        if half not in ("a", "b"):
            reasons.append(f"{name} is neither lora_a nor lora_b of a tensor")
        elif reason := _no_place(place, model):
            reasons.append(f"{place} {reason}")
        elif kind not in VALUE_TYPES:
            reasons.append(f"{name} is of type {kind}, and adapters are of {', '.join(VALUE_TYPES)}")
        else:
            halves.setdefault(place, {})[half] = tensor
    source.refuse(reasons)
    for own in halves.values():
        if len(own) == 1:
            raise source.corrupt(f"{next(iter(own.values())).name} is there without its other half")
    if not halves:
        raise source.corrupt("it has no tensors")
    return {place: (own["a"], own["b"]) for place, own in halves.items()}


def _no_place(place: str, model: GGUFFile) -> str | None:
    """Why llama.cpp cannot hold LoRA on this tensor of the model; None: it can."""
    if place in (EMBEDDINGS, OUTPUT) and OUTPUT not in model.tensors:
        return "is one matrix for embeddings and output, and llama.cpp would take its LoRA for both"
    if place not in model.tensors:
        return f"has no place in {model.paths[0].name}"
    if not LAYERS.fullmatch(place) or len(model.tensors[place].shape) != 2:
        return f"is not a layer that takes LoRA ({place})"
    return None


def _shapes(tensor: GGUFTensor, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """What A and B of a tensor look like in a GGUF adapter."""
    rows, columns = tensor.shape
    if tensor.name == EMBEDDINGS:
        return (rows, rank), (columns, rank)
    return (rank, columns), (rows, rank)


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A file may leave out an outermost length of 1."""
    return (1,) * (2 - len(shape)) + shape


def _convert(
    layer: _Layer, down: Tensor, up: Tensor, *, factor: float, model: GGUFFile, source: _Source
) -> Iterator[tuple[str, Any]]:
    """A and B of PEFT as the GGUF adapter has them: float32 arrays under their names there."""
    name = layer.tensor.name
    down, up = down.float(), (up.double() * factor).float()
    source.check_finite(layer.down, bool(down.isfinite().all()))
    source.check_finite(layer.up, bool(up.isfinite().all()))
    if layer.is_embeddings:
        down = down.T
    if model.architecture in ROWS_IN_PAIRS and (found := re.fullmatch(r"blk\.(\d+)\.attn_([qk])\.weight", name)):
        num_heads = _num_heads(model, int(found[1]), of_keys=found[2] == "k")
        if num_heads < 1 or len(up) % (2 * num_heads):
            raise source.corrupt(f"{name} has {len(up)} rows, which are not those of {num_heads} heads")
        up = _in_pairs(up, num_heads)
    yield f"{name}.lora_a", down.contiguous().numpy()
    yield f"{name}.lora_b", up.contiguous().numpy()


def _num_heads(model: GGUFFile, layer: int, *, of_keys: bool) -> int:
    """Heads of queries or of keys; a file may count them for each layer."""
    heads = model.value("attention.head_count", 0)
    if of_keys:
        heads = model.value("attention.head_count_kv", heads)
    return int(heads if isinstance(heads, int) else heads[layer])


def _in_pairs(rows: Tensor, num_heads: int) -> Tensor:
    """Rows `[heads * head_dim, rank]` whose halves of a head belong together, reordered so that neighbours do.

    >>> _in_pairs(Tensor([[0], [1], [2], [3], [4], [5], [6], [7]]), num_heads=2).flatten().tolist()
    [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
    """
    return rows.reshape(num_heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
