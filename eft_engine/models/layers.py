"""What the layers of a model keep of a text: which kinds there are, and how many bytes of each.

    keys and values   of attention: bytes for every token of the text
    state             of everything else (recurrences, short convolutions): as many bytes for a text of any length

No list of families says it. transformers makes a cache out of a configuration; a model without numbers (on the meta device)
runs two tokens over it, and what lies in the cache then has the shapes. Where such a run stops early, layers of the same kind
are taken to be alike, and the rest is told by the configuration.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicCache,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from eft_engine.models.model_files import files_of
from eft_engine.models.scans import FAMILIES

CACHE_ARGUMENTS = ("past_key_values", "cache_params")
"""What forward functions call their cache: with attention, and without."""

TOKENS = 2
"""How many the run on the meta device reads."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerSummary:
    """Kinds of layers for people (`"16 x sliding attention (1,024)"`), and the bytes that all of them keep together."""

    kinds: tuple[str, ...] = ()
    kv_bytes_per_token: int = 0
    state_bytes: int = 0


def layers_of(skeleton: PreTrainedModel, dtype: torch.dtype) -> LayerSummary:
    """The layers of a model.

    Args:
        skeleton: on the meta device; it gets this dtype.
        dtype: of weights, keys and values.
    """
    if not cache_argument(skeleton):
        return LayerSummary(kinds=_experts(skeleton))
    skeleton.eval()
    if skeleton.dtype != dtype:
        skeleton.to(dtype)
    cache = empty_cache(skeleton.config)
    _fill(skeleton, cache)
    kv_bytes, state_bytes = _kv_bytes(skeleton, cache), _state_bytes(skeleton, cache)
    if not kv_bytes and not state_bytes:  # it runs over no such cache
        return LayerSummary(kinds=_experts(skeleton))
    types: list[str] = getattr(skeleton.config.get_text_config(decoder=True), "layer_types", None) or []
    names = [
        _name(layer, types[index] if index < len(types) else "", skeleton) for index, layer in enumerate(cache.layers)
    ]
    kinds = tuple(f"{number} x {name}" for name, number in Counter(names).items())
    return LayerSummary(kinds + _experts(skeleton), kv_bytes, state_bytes)


def empty_cache(config: PreTrainedConfig) -> DynamicCache:
    """The cache that transformers makes for models of this configuration; without layers where it makes none."""
    try:
        return DynamicCache(config=config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a configuration of another make
        logger.debug("transformers makes no cache of %s: %r", type(config).__name__, error)
        return DynamicCache()


def cache_argument(model: PreTrainedModel) -> str | None:
    """What the forward function of a model calls its cache; None: it takes none. One that passes on whatever it gets takes one."""
    parameters = inspect.signature(model.forward).parameters
    if any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters.values()):
        return CACHE_ARGUMENTS[0]
    return next((name for name in CACHE_ARGUMENTS if name in parameters), None)


def unknown_layer(model: PreTrainedModel) -> str | None:
    """The class of a cache layer that keeps something beside keys, values and states; None: there is none."""
    for layer in empty_cache(model.config).layers:
        kind = type(layer)
        known = [base for base in kind.__mro__ if base.__module__ == CacheLayerMixin.__module__]
        further = _methods(kind) - _methods(*known)
        if isinstance(layer, DynamicIndexedLayer) or any(calls(model, name) for name in further):
            return kind.__name__
    return None


def calls(model: nn.Module, name: str) -> bool:
    """Whether a method of some module calls something of this name."""
    methods = (own for kind in {type(module) for module in model.modules()} for own in vars(kind).values())
    return any(
        name in inspect.unwrap(method).__code__.co_names for method in methods if isinstance(method, FunctionType)
    )


def _methods(*classes: type) -> set[str]:
    return {
        name for kind in classes for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))
    }


@torch.no_grad()
def _fill(skeleton: PreTrainedModel, cache: DynamicCache) -> None:
    """Run the skeleton over the cache, as far as that goes without numbers."""
    arguments: dict[str, Any] = {cache_argument(skeleton) or "": cache}
    if "position_ids" in inspect.signature(skeleton.forward).parameters:
        arguments["position_ids"] = torch.arange(TOKENS, device="meta")[None]
    try:
        with _experts_without_numbers(skeleton):
            skeleton(input_ids=torch.ones(1, TOKENS, dtype=torch.long, device="meta"), use_cache=True, **arguments)
    except Exception as error:  # code of any model class, which may look into numbers
        logger.debug("%s does not run on the meta device: %r", type(skeleton).__name__, error)


@contextmanager
def _experts_without_numbers(skeleton: PreTrainedModel) -> Iterator[None]:
    """Experts computed in the one way of transformers that does not look who is chosen."""
    held = {
        id(config): config for module in skeleton.modules() if (config := getattr(module, "config", None)) is not None
    }
    own = {key: getattr(config, "_experts_implementation_internal", None) for key, config in held.items()}
    try:
        for config in held.values():
            config._experts_implementation_internal = "batched_mm"
        yield
    finally:
        for key, config in held.items():
            config._experts_implementation_internal = own[key]


def _kv_bytes(skeleton: PreTrainedModel, cache: DynamicCache) -> int:
    """Bytes of one token in all layers that have keys and values."""
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    known = {type(layer): size for layer in layers if (size := _num_bytes(layer.keys, layer.values) // TOKENS)}
    own = [_num_bytes(layer.keys, layer.values) // TOKENS or known.get(type(layer), 0) for layer in layers]
    if not all(own):
        configs = skeleton.config.get_text_config(decoder=True).per_layer_config
        configured = _configured_kv_bytes(configs[-1], skeleton.dtype)
        own = [size or configured for size in own]
    return sum(own)


def _configured_kv_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of one token in one layer as most configurations tell it; 0: this one does not."""
    heads: int = getattr(config, "num_attention_heads", None) or 0
    kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
    width: int = getattr(config, "hidden_size", None) or 0
    head_dim: int = getattr(config, "head_dim", None) or (width // heads if heads else 0)
    return 2 * kv_heads * head_dim * dtype.itemsize


def _state_bytes(skeleton: PreTrainedModel, cache: DynamicCache) -> int:
    states = [layer for layer in cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
    held = sum(_num_bytes(*layer.conv_states.values(), *layer.recurrent_states.values()) for layer in states)
    blocks = (vars(module) for module in skeleton.modules())
    return held + sum(
        _num_bytes(own.get("conv1d_state"), own.get("recurrent_states")) for own in blocks
    )  # see `griffin`


def _num_bytes(*tensors: Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _name(layer: CacheLayerMixin, layer_type: str, skeleton: PreTrainedModel) -> str:
    """What people call a layer."""
    if type(layer).__name__ == "DummyLayer":  # older releases of transformers have no such class
        if layer_type in ("mlp", "moe"):
            return "no memory (experts)" if layer_type == "moe" else "no memory (feed-forward)"
        return f"{layer_type.replace('_', ' ') or 'attention'} with another layer's keys"
    parts: list[str] = []
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        parts.append(_state_name(layer, skeleton))
    if isinstance(layer, DynamicSlidingWindowLayer):
        kind = "chunked" if layer_type == "chunked_attention" else "sliding"
        parts.append(f"{kind} attention ({layer.sliding_window:,})")
    elif isinstance(layer, DynamicIndexedLayer):
        parts.append("sparse attention with an index")
    elif isinstance(layer, DynamicLayer):
        is_own = type(layer).__module__ != DynamicLayer.__module__
        parts.append(layer_type.replace("_", " ") if is_own and layer_type else "full attention")
    return " and ".join(parts) or type(layer).__name__


def _state_name(layer: LinearAttentionCacheLayerMixin, skeleton: PreTrainedModel) -> str:
    if any(hasattr(module, "rg_lru") for module in skeleton.modules()):
        return "RG-LRU"
    is_recurrent = any(state is not None for state in layer.recurrent_states.values())
    if not is_recurrent and any(state is not None for state in layer.conv_states.values()):
        return "short convolution"
    files = files_of(skeleton)
    return next((own.title for file in files for own in FAMILIES if hasattr(file, own.chunk_name)), "state")


def _experts(skeleton: PreTrainedModel) -> tuple[str, ...]:
    """`("24 x experts (128, 8 per token)",)`, or nothing."""
    decoder = skeleton.get_decoder()
    found = (
        [] if decoder is None else [m for name, m in decoder.named_modules() if name.rpartition(".")[2] == "experts"]
    )
    numbers = Counter(
        len(own) if isinstance(own, nn.ModuleList) else getattr(own, "num_experts", None) for own in found
    )
    config = skeleton.config.get_text_config(decoder=True)
    names = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k")
    used = next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
    beside = f", {used} per token" if used else ""
    return tuple(f"{count} x experts" + (f" ({number}{beside})" if number else "") for number, count in numbers.items())
