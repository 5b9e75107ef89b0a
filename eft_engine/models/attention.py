"""Attention by torch's own kernels: the default of the functions that networks run under while they belong to the engine.

transformers' own sdpa path copies every cached key once per query head (`repeat_kv`) when queries are grouped and a mask is
given. Here the query heads that share a key head are stacked along the query axis instead: the same sums, and the cache is read
once. The mask comes from the `BatchLayout`, which knows each row's length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from eft_engine.errors import UnsupportedModelError
from eft_engine.models.kv_cache import BatchLayout


def slot_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    kv_layout: BatchLayout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of new tokens over their slots.

    Args:
        module: the attention module (unused; part of transformers' signature, like `attention_mask` and `dropout`).
        query: `[rows, heads, columns, head_dim]`.
        key, value: `[rows, kv_heads, window, head_dim]`, as `SlotLayer.update` returned them.
        scaling: factor on the scores; None: `head_dim ** -0.5`.
        sliding_window: number of positions a token may look back, itself included; None: all.
        softcap: scores s become `softcap * tanh(s / softcap)` (Gemma 2).
        s_aux: attention sinks; not supported.
        kv_layout: passed through the model's keyword arguments.

    Returns:
        `[rows, columns, heads, head_dim]`, and no attention weights.

    Raises:
        UnsupportedModelError: the model does not pass `kv_layout` down, or uses attention sinks.
    """
    kv_layout = checked_layout(module, kv_layout, s_aux)
    rows, heads, columns, head_dim = query.shape
    kv_heads = key.shape[1]
    num_groups = heads // kv_heads
    mask = kv_layout.mask(sliding_window=sliding_window, num_groups=num_groups, dtype=query.dtype, device=query.device)
    query = query.reshape(rows, kv_heads, num_groups * columns, head_dim)
    if softcap is None:
        output = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    else:
        scores = query @ key.transpose(2, 3) * (head_dim**-0.5 if scaling is None else scaling)
        scores = softcap * torch.tanh(scores / softcap)
        if mask is not None:
            scores = scores + mask
        output = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value
    return output.reshape(rows, heads, columns, value.shape[-1]).transpose(1, 2), None


def checked_layout(module: torch.nn.Module, kv_layout: BatchLayout | None, s_aux: Tensor | None) -> BatchLayout:
    """The layout that every attention function of the engine needs.

    Raises:
        UnsupportedModelError: the model does not pass `kv_layout` down, or uses attention sinks.
    """
    if kv_layout is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} was reached without the engine's layout: either its model was called directly while an "
            "engine holds it (close the engine first), or the model does not pass keyword arguments down to its attention"
        )
    if s_aux is not None:
        raise UnsupportedModelError(f"{type(module).__name__} uses attention sinks, which the engine does not support")
    return kv_layout
