"""What llama.cpp keeps of a text, as far as the header of a GGUF file tells: types of keys and values, and their bytes."""

from __future__ import annotations

import numpy as np

from eft_engine.config import LlamaCppOptions
from eft_engine.errors import InvalidOptionError
from eft_engine.models.gguf_file import GGML_TYPES, GGUFFile
from eft_engine.models.layers import LayerSummary

STATE_KEYS = ("ssm.state_size", "ssm.conv_kernel", "shortconv.l_cache", "wkv.head_size", "kda.head_dim")
"""GGUF metadata that a network has whose layers keep a state."""

FLOATING = ("f32", "f16", "bf16")
"""Types of keys and values that are not quantised."""

QUANTISED_BLOCK = 32
"""Numbers in a block of quantised keys and values."""


def has_state(gguf: GGUFFile) -> bool:
    """Whether layers keep a state, as far as the file says."""
    return any(gguf.value(key) for key in STATE_KEYS)


def gguf_layers(gguf: GGUFFile, options: LlamaCppOptions) -> LayerSummary:
    """Layers and bytes of a file whose layers all have keys and values for every head; of others, nothing."""
    num_layers = gguf.value("block_count", 0)
    if has_state(gguf) or gguf.value("attention.kv_lora_rank") or not num_layers:
        return LayerSummary()
    heads = gguf.value("attention.head_count_kv", gguf.value("attention.head_count", 0))
    num_heads = int(np.sum(np.broadcast_to(heads, num_layers)))
    key_len = _head_len(gguf)
    value_len = gguf.value("attention.value_length", key_len)
    numbers = ((options.cache_type_k, key_len), (options.cache_type_v, value_len))
    token_bytes = num_heads * sum(length * _bytes_of_number(name) for name, length in numbers)
    window = gguf.value("attention.sliding_window")
    kind = f"attention, of which some with a window ({window:,})" if window else "full attention"
    return LayerSummary((f"{num_layers} x {kind}",), kv_bytes_per_token=int(token_bytes))


def check_cache_types(role: str, gguf: GGUFFile, options: LlamaCppOptions) -> None:
    """Refuse types with which llama.cpp makes no context.

    Raises:
        InvalidOptionError: heads do not fit into the blocks of a type, or it needs flash attention, which is off.
    """
    head_len = _head_len(gguf)
    for name in ("cache_type_k", "cache_type_v"):
        kind = getattr(options, name)
        if kind not in FLOATING and head_len % QUANTISED_BLOCK:
            raise InvalidOptionError(
                f"{role}: {name}={kind!r} holds blocks of {QUANTISED_BLOCK} numbers, and the heads of {gguf.paths[0]} have "
                f"{head_len}; use f16 or bf16",
                option=name,
                value=kind,
            )
    if options.cache_type_v not in FLOATING and options.flash_attention is False:
        raise InvalidOptionError(
            f"{role}: quantised values (cache_type_v={options.cache_type_v!r}) need flash attention, and it is off",
            option="cache_type_v",
            value=options.cache_type_v,
        )


def _head_len(gguf: GGUFFile) -> int:
    head_len: int | None = gguf.value("attention.key_length")
    if head_len is not None:
        return head_len
    return int(gguf.value("embedding_length", 0)) // max(1, int(np.max(gguf.value("attention.head_count", 1))))


def _bytes_of_number(cache_type: str) -> float:
    kind = next(own for own in GGML_TYPES.values() if own.name == cache_type.upper())
    return kind.block_bytes / kind.block_len
