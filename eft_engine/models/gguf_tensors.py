"""Which tensors of a GGUF file make which parameter of a transformers model, and their numbers.

    skeleton   the model on the meta device: names and shapes of all parameters, no numbers
    recipe     how one parameter is made: of which tensors, and by which conversion
    piece      so many numbers of a tensor as are unpacked at once

llama.cpp's converter renames tensors and changes some (rows of q and k in another order, norms as 1 + weight, experts apart).
transformers knows how to undo that, in two tables: tensor processors, and weight conversions for newer architectures. Both are
asked here; what is read, when and into which memory is decided here. Needs the package `gguf`, which unpacks the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.integrations.gguf import get_gguf_conversion_mapping, is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from eft_engine.errors import CorruptWeightsError, UnsupportedModelError
from eft_engine.models.gguf_file import GGML_TYPES, GGUFFile, GGUFTensor

PIECE_LEN = 1 << 17
"""A piece's numbers take 512 KiB in float32. Of 1 MiB, its arrays are mapped afresh for each piece: five times the page faults."""
SERIAL_LEN = 1 << 15
"""So many numbers torch converts in the calling thread; for more it calls others, and on busy cores it waits long for them."""

UNUSED = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight|blk\.\d+\.attn_rot_embd\.weight")
"""Tensors that transformers does without: it computes rotary frequencies from the configuration."""

Values = NDArray[np.float32]
Convert = Callable[[Mapping[str, Values]], torch.Tensor]
"""Makes a parameter of its tensors' numbers, which come by the tensors' names."""


@dataclass(frozen=True)
class Recipe:
    """How a parameter of shape `shape` is made of `tensors`. `convert` is None where their numbers are taken as they are."""

    shape: tuple[int, ...]
    tensors: tuple[GGUFTensor, ...]
    convert: Convert | None


class LazyParameter:
    """A parameter that is read when it is indexed: what `from_pretrained` takes in place of a tensor, and indexes in its threads.

    Args:
        recipe: how it is made.
        dtype: what it is wanted in.
        advance: called with each count of numbers that were read, from any thread.
        member: whose it is, for messages.
    """

    def __init__(self, recipe: Recipe, *, dtype: torch.dtype, advance: Callable[[int], None], member: str) -> None:
        self._recipe = recipe
        # Vectors stay as they are until transformers casts them: it keeps the norms of some architectures in float32.
        self._dtype = dtype if len(recipe.shape) > 1 else torch.float32
        self._advance = advance
        self._member = member

    def __getitem__(self, _everything: Any) -> torch.Tensor:
        if self._recipe.convert is None:
            return self._read(self._recipe.tensors[0], self._dtype)
        values = {tensor.name: self._read(tensor, torch.float32).numpy() for tensor in self._recipe.tensors}
        try:
            converted = self._recipe.convert(values)
        except (ValueError, RuntimeError) as error:
            raise self._misshapen(str(error)) from error
        if converted.shape != self._recipe.shape:
            raise self._misshapen(f"it becomes {list(converted.shape)}")
        return converted.to(self._dtype)

    def _read(self, tensor: GGUFTensor, dtype: torch.dtype) -> torch.Tensor:
        """The tensor in `dtype`, without a second copy of all its numbers in float32."""
        read = torch.empty(tensor.shape, dtype=dtype)
        flat, end = read.view(-1), 0
        for piece in pieces(tensor, member=self._member):
            numbers = torch.from_numpy(piece)
            for start in range(0, len(piece), SERIAL_LEN):
                part = numbers[start : start + SERIAL_LEN]
                flat[end : end + len(part)].copy_(part)
                end += len(part)
            self._advance(len(piece))
        return read

    def _misshapen(self, reason: str) -> CorruptWeightsError:
        tensors = self._recipe.tensors
        source = str(tensors[0].path)
        found = ", ".join(f"{tensor.name} of shape {list(tensor.shape)}" for tensor in tensors)
        return CorruptWeightsError(
            f"{self._member}: {source} has {found}, and {list(self._recipe.shape)} is needed ({reason}); the file is damaged",
            member=self._member,
            source=source,
        )


def pieces(tensor: GGUFTensor, *, member: str) -> Iterator[Values]:
    """The numbers of a tensor in their order, flat, `PIECE_LEN` at a time.

    Raises:
        CorruptWeightsError: the file ends early, or numbers are not finite.
    """
    kind, source = GGML_TYPES[tensor.ggml_type], str(tensor.path)
    ggml_type = GGMLQuantizationType(tensor.ggml_type)
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(tensor.offset)
        for start in range(0, tensor.num_elements, PIECE_LEN):
            piece_len = min(PIECE_LEN, tensor.num_elements - start)
            packed = np.fromfile(file, dtype=np.uint8, count=piece_len // kind.block_len * kind.block_bytes)
            if packed.size < piece_len // kind.block_len * kind.block_bytes:
                raise CorruptWeightsError(
                    f"{member}: {source} ends inside tensor {tensor.name}; it is not complete, download it again",
                    member=member,
                    source=source,
                )
            with np.errstate(all="ignore"):  # wrong scales are looked for below
                values: Values = dequantize(packed.reshape(1, -1), ggml_type)[0]  # one row: one pass over all blocks
            if not np.isfinite(values).all():
                raise CorruptWeightsError(
                    f"{member}: tensor {tensor.name} of {source} holds numbers that are not finite; the file is damaged, or "
                    "its parts were joined in the wrong order; download it again",
                    member=member,
                    source=source,
                )
            yield values


def plan_parameters(file: GGUFFile, skeleton: PreTrainedModel, *, member: str) -> dict[str, Recipe]:
    """A recipe for every parameter of the model but those that are tied to another. Nothing is read.

    Raises:
        CorruptWeightsError: tensors are missing, have other shapes than the model's, or have no place in it.
        UnsupportedModelError: tensors are of a type that cannot be unpacked.
    """
    _check_types(file, member)
    route = _by_conversions if is_gguf_arch_supported(file.architecture) else _by_processors
    tensors: dict[str, list[GGUFTensor]] = {}
    converts: dict[str, Convert | None] = {}
    for tensor, name, convert in route(file, skeleton):
        tensors.setdefault(name, []).append(tensor)
        converts[name] = convert
    parameters = skeleton.state_dict()
    source = str(file.paths[0])

    def fail(reason: str) -> CorruptWeightsError:
        return CorruptWeightsError(
            f"{member}: {source} {reason}; the file is damaged, or it holds a variant of {file.architecture} that transformers "
            f"does not load from GGUF as {type(skeleton).__name__}",
            member=member,
            source=source,
        )

    if missing := _without(parameters.keys() - tensors - _tied(skeleton), skeleton._keys_to_ignore_on_load_missing):
        raise fail(f"has no tensor for {_first(missing)}")
    recipes: dict[str, Recipe] = {}
    for name, parts in tensors.items():
        if name not in parameters:
            continue
        shape, num_elements = tuple(parameters[name].shape), sum(part.num_elements for part in parts)
        if num_elements != parameters[name].numel() or (converts[name] is None and parts[0].shape != shape):
            found = ", ".join(f"{part.name} of shape {list(part.shape)}" for part in parts)
            raise fail(f"has {found}, and {name} needs {list(shape)}")
        recipes[name] = Recipe(shape, tuple(parts), converts[name])
    known = {part.name for recipe in recipes.values() for part in recipe.tensors}
    ignored = _without(tensors.keys() - parameters, skeleton._keys_to_ignore_on_load_unexpected)
    dropped = {part.name for name in tensors.keys() - parameters.keys() - ignored for part in tensors[name]}
    if unwanted := {name for name in file.tensors.keys() - known - dropped if not UNUSED.fullmatch(name)}:
        raise fail(f"has tensors that have no place in the model: {_first(unwanted)}")
    return recipes


def _by_processors(file: GGUFFile, skeleton: PreTrainedModel) -> Iterator[tuple[GGUFTensor, str, Convert | None]]:
    """Tensors with the parameters that they belong to, for architectures with a tensor processor (or needing none)."""
    processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(config=skeleton.config.to_dict())
    names: dict[str, str] = get_gguf_hf_weights_map(_OuterModules(skeleton), processor, file.architecture)

    def process(weights: Any, name: str, made: dict[str, torch.Tensor]) -> tuple[Any, str | None]:
        done = processor.process(
            weights=weights, name=name, tensor_key_mapping=names, parsed_parameters={"tensors": made}
        )
        return done.weights, done.name

    def convert(values: Mapping[str, Values]) -> torch.Tensor:
        made: dict[str, torch.Tensor] = {}  # where processors put what they make of several tensors
        for name, array in values.items():
            weights, rest = process(array, name, made)
            if rest is not None:
                return torch.from_numpy(np.ascontiguousarray(weights))
        (made_parameter,) = made.values()
        return made_parameter

    def is_changed(name: str) -> bool:
        """Whether the processor does anything: it is handed an object with which nothing can be done."""
        untouchable = object()
        try:
            weights, rest = process(untouchable, name, {})
        except (AttributeError, TypeError, IndexError):
            return True
        return weights is not untouchable or rest != name

    for tensor in file.tensors.values():
        if is_changed(tensor.name):
            stem = tensor.name.removesuffix(".weight")  # stacked experts are a parameter without suffix
            if target := names.get(tensor.name, names.get(stem)):
                yield tensor, target, convert
        elif tensor.name in names:
            yield tensor, names[tensor.name], None


class _OuterModules:
    """What `get_gguf_hf_weights_map` asks a model for, down to the model's own children.

    Names are found there, some without the model's prefix (Bloom); going on to every module takes 10 s for 28 layers.
    """

    def __init__(self, module: torch.nn.Module, *, config: PreTrainedConfig | None = None) -> None:
        self.config = config or module.config
        self.state_dict = module.state_dict
        self._module = module
        self._is_outermost = config is None

    def named_children(self) -> list[tuple[str, _OuterModules]]:
        if not self._is_outermost:
            return []
        return [(name, _OuterModules(child, config=self.config)) for name, child in self._module.named_children()]


def _by_conversions(file: GGUFFile, skeleton: PreTrainedModel) -> Iterator[tuple[GGUFTensor, str, Convert | None]]:
    """Tensors with the parameters that they belong to, for architectures with weight conversions."""
    mapping = get_gguf_conversion_mapping(file.architecture, skeleton.config)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    parameters = skeleton.state_dict()
    patterns: dict[str, str] = {}

    def converted_to(target: str) -> Convert:
        def convert(values: Mapping[str, Values]) -> torch.Tensor:
            converter = deepcopy(by_pattern[patterns[next(iter(values))]])
            for name, array in values.items():
                converter.add_tensor(target, name, patterns[name], torch.from_numpy(array))
            (made,) = converter.convert(target, model=skeleton, config=skeleton.config).values()
            parameter: torch.Tensor = made[0] if isinstance(made, list) else made
            return parameter

        return convert

    for tensor in sorted(file.tensors.values(), key=lambda tensor: tensor.name):  # gate before up, as from_pretrained
        target, pattern = rename_source_key(tensor.name, renamings, converters, skeleton.base_model_prefix, parameters)
        if pattern is not None:
            patterns[tensor.name] = pattern
        yield tensor, target, None if pattern is None else converted_to(target)


def _check_types(file: GGUFFile, member: str) -> None:
    """That the package `gguf` unpacks all types of the file: a block of each is tried."""
    for number in sorted({tensor.ggml_type for tensor in file.tensors.values()}):
        kind = GGML_TYPES[number]
        try:
            dequantize(np.zeros((1, kind.block_bytes), dtype=np.uint8), GGMLQuantizationType(number))
        except (ValueError, NotImplementedError) as error:
            name = next(tensor.name for tensor in file.tensors.values() if tensor.ggml_type == number)
            raise UnsupportedModelError(
                f"{member}: tensor {name} of {file.paths[0]} is of type {kind.name}, which the installed gguf package does not "
                "unpack; use a file of another quantisation, such as Q4_K_M",
                member=member,
                source=str(file.paths[0]),
            ) from error


def _tied(skeleton: PreTrainedModel) -> set[str]:
    """Parameters that are another one under a second name."""
    return set(skeleton.all_tied_weights_keys)


def _without(names: set[str], patterns: Any) -> set[str]:
    """The names that match none of the regular expressions (None: there are none)."""
    return {name for name in names if not any(re.search(pattern, name) for pattern in patterns or ())}


def _first(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
