"""Weights that are packed: stored so by a checkpoint, or packed while they are read (`MemberConfig(quantization_config=...)`).

    method    who packs them: bitsandbytes, gptq, fp8, ...: `quant_method` of transformers' configurations
    unpacked  transformers turns them back into numbers of the network's dtype, so that memory holds what any checkpoint takes

What becomes of packed weights depends on the machine. transformers' own quantisers are asked (`settle`): they know which packages
and devices they need, and when they unpack. What their configurations have in common, the bits of a number, is searched for.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.accelerate import check_and_set_device_map
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer

from eft_engine.models.devices import devices_of_map
from eft_engine.models.towers import num_parameters

BITS: Mapping[str, float] = {
    "bitnet": 2,
    "eetq": 8,
    "fbgemm_fp8": 8,
    "fouroversix": 4,
    "fp8": 8,
    "fp_quant": 4,
    "mxfp4": 4.25,
    "mxfp8": 8.25,
    "nvfp4": 4.5,
}
"""Of methods whose configurations do not say it, because there is one number; shared exponents included where they are many."""

NAMES_OF_BITS = ("bits", "nbits", "w_bit", "num_bits")

NAMES_OF_TYPES = ("weights", "dtype", "_type")

NOT_OF_WEIGHTS = ("activation", "input", "output", "kv_cache", "scale", "zero")
"""Words in the names of settings for other things that have bits too."""

NAMED_AFTER_TYPES = ("fp8", "mxfp4", "mxfp8", "nvfp4")
"""Methods whose name says what the numbers are."""

OF_GPUS = ("fbgemm_fp8", "fp8", "mxfp4", "mxfp8")
"""Methods whose packed weights no CPU computes with."""

WITH_EXPERTS = ("fbgemm_fp8", "fp8", "mxfp4", "mxfp8")
"""Methods that pack experts which lie in one parameter; the others pack linear layers alone."""

UNPACKED_IN_THE_FIRST_PASS = "compressed-tensors"
"""Its own module hooks do it, so transformers calls the network packed until then."""


@dataclass(frozen=True)
class Quantisation:
    """How weights are packed. `bits` of a number: None where the configuration does not tell."""

    method: str
    bits: float | None
    kind: str
    is_stored: bool
    """The checkpoint is; otherwise they are packed while they are read."""

    @property
    def label(self) -> str:
        """For people.

        >>> Quantisation("bitsandbytes", 4, "nf4", True).label, Quantisation("fp8", 8, "", True).label
        ('4-bit (bitsandbytes nf4)', 'fp8')
        """
        if self.method in NAMED_AFTER_TYPES:
            return self.method
        name = " ".join(filter(None, (self.method, self.kind)))
        return f"{self.bits:g}-bit ({name})" if self.bits else name


@dataclass(frozen=True)
class Outcome:
    """What transformers does on this machine with weights that are packed or to be packed."""

    dtype: torch.dtype
    """Of everything else; some methods compute in one dtype only."""
    unpacks: bool = False
    problem: str | None = None
    """Why they cannot be held; None: nothing is known against it."""


def quantisation_of(config: PreTrainedConfig, asked: Any) -> Quantisation | None:
    """How the weights of a checkpoint are packed, or will be; None: they are not.

    Args:
        config: of the checkpoint.
        asked: the user's `quantization_config`. What a checkpoint says about itself goes first.
    """
    stored = stored_configuration(config)
    settings = _settings(asked if stored is None else stored)
    if not settings:
        return None
    method = str(getattr(settings.get("quant_method"), "value", settings.get("quant_method") or "unknown method"))
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):  # early files of bitsandbytes name no method
        method = "bitsandbytes"
    return Quantisation(method, _bits(method, settings), _kind(method, settings), stored is not None)


def stored_configuration(config: PreTrainedConfig) -> Any:
    """What a checkpoint says about how it is packed, where transformers looks for it; None: nothing."""
    text = config.get_text_config(decoder=True)
    return getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None)


def _settings(configuration: Any) -> dict[str, Any]:
    if configuration is None:
        return {}
    if isinstance(configuration, Mapping):
        return dict(configuration)
    settings: dict[str, Any] = configuration.to_dict()
    return settings


def _bits(method: str, settings: Mapping[str, Any]) -> float | None:
    if method == "bitsandbytes":
        return 4 if settings.get("load_in_4bit") or settings.get("_load_in_4bit") else 8
    if (known := BITS.get(method)) is not None:
        return known
    if method == "aqlm":  # codes of several books stand for a group of numbers
        books, group = settings.get("num_codebooks", 1), settings.get("in_group_size", 8)
        return float(settings.get("nbits_per_codebook", 16) * books / group)
    found = list(_found_bits(settings))
    return max(found) if found else None


def _found_bits(settings: Mapping[str, Any]) -> Iterator[float]:
    """Bits of weights under any of their names, and in words such as `int4`, `Float8WeightOnlyConfig` or `fp4`."""
    for key, value in settings.items():
        if any(word in str(key) for word in NOT_OF_WEIGHTS):
            continue
        if key in NAMES_OF_BITS and isinstance(value, int | float):
            yield float(value)
        elif key in NAMES_OF_TYPES and isinstance(value, str):
            yield from (float(digit) for digit in re.findall(r"(?:int|fp|float|nf)(\d)", value.lower())[:1])
        elif isinstance(value, Mapping):
            yield from _found_bits(value)


def _kind(method: str, settings: Mapping[str, Any]) -> str:
    if method == "bitsandbytes":
        is_4bit = settings.get("load_in_4bit") or settings.get("_load_in_4bit")
        return str(settings.get("bnb_4bit_quant_type", "fp4")) if is_4bit else "int8"
    if method == "compressed-tensors":
        return str(settings.get("format") or "")
    return ""


def settle(
    quantisation: Quantisation,
    config: PreTrainedConfig,
    asked: Any,
    *,
    dtype: torch.dtype,
    device: str,
    device_map: Any,
) -> Outcome:
    """Ask transformers' quantiser what it would do. Nothing is changed or loaded.

    Args:
        quantisation: as of `quantisation_of`.
        config: of the checkpoint.
        asked: the user's `quantization_config`.
        dtype: what the network is to compute in.
        device: where it is to lie.
        device_map: where its parts are to lie; None: all of it on `device`.
    """
    label, method = quantisation.label, quantisation.method
    unpacks = method == UNPACKED_IN_THE_FIRST_PASS
    stored = stored_configuration(config)
    if stored is not None and method != "bitsandbytes" and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        known = ", ".join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))
        return Outcome(
            dtype,
            problem=f"its weights are packed by {method!r}, which transformers {transformers.__version__} does not know and would "
            f"read as if they were not packed (known are {known})",
        )
    try:
        wanted = copy.deepcopy(asked)
        merged = wanted if stored is None else AutoHfQuantizer.merge_quantization_configs(copy.deepcopy(stored), wanted)
        quantizer = AutoHfQuantizer.from_config(merged, pre_quantized=stored is not None)
        quantizer.validate_environment(device_map=check_and_set_device_map(device_map or device), weights_only=True)
        dtype = quantizer.update_dtype(dtype)
    except Exception as error:  # code of any quantiser and of its package
        words = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        return Outcome(dtype, unpacks, f"{label} weights cannot be {_verb(quantisation)} here: {words}")
    unpacks = bool(getattr(quantizer.quantization_config, "dequantize", False)) or (
        unpacks and not getattr(quantizer, "use_fp8_kernel", False)
    )
    if method == "mxfp4" and not torch.accelerator.is_available():
        unpacks = True  # its kernels for CPUs are for those who ask from_pretrained for kernels
    if method in OF_GPUS and not unpacks and devices_of_map(device_map or device) == ("cpu",):
        return Outcome(dtype, problem=_needs_gpu(quantisation, device_map or device))
    return Outcome(dtype, unpacks)


def _verb(quantisation: Quantisation) -> str:
    return "used" if quantisation.is_stored else "made"


def _needs_gpu(quantisation: Quantisation, place: Any) -> str:
    classes = {"fp8": "FineGrainedFP8Config", "mxfp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}
    name = classes.get(quantisation.method)
    unpack = f", or have them unpacked: MemberConfig(quantization_config={name}(dequantize=True))" if name else ""
    return f"{quantisation.label} weights need a GPU to compute with, and {place!r} was asked for; give a GPU{unpack}"


def estimated_bytes(quantisation: Quantisation, skeleton: PreTrainedModel, dtype: torch.dtype) -> int:
    """About how many bytes packed weights take, out of a model without numbers. Scales are taken to add half a bit to a number that
    is packed in less than eight; what is not packed (embeddings, output layer, norms) has `dtype`.
    """
    total = num_parameters(skeleton)
    if quantisation.bits is None:
        return total * dtype.itemsize
    packed = sum(weight.numel() for weight in _packed(quantisation.method, skeleton))
    scales = 0 if quantisation.method in BITS else 0.5 if quantisation.bits < 8 else 0.125
    return int(packed * (quantisation.bits + scales) / 8) + (total - packed) * dtype.itemsize


def _packed(method: str, skeleton: PreTrainedModel) -> list[Tensor]:
    """Each once, however often it is used."""
    beside = {id(skeleton.get_output_embeddings().weight), id(skeleton.get_input_embeddings().weight)}
    found: dict[int, Tensor] = {}
    for module in skeleton.modules():
        if isinstance(module, nn.Linear | Conv1D) and method != "mxfp4":
            found[id(module.weight)] = module.weight
        if method in WITH_EXPERTS:
            found |= {id(own): own for own in module.parameters(recurse=False) if own.ndim == 3}
    return [parameter for key, parameter in found.items() if key not in beside]
