"""Attention by torch's own kernels: the default of the functions that networks run under while they belong to the engine.

transformers' own sdpa path copies every cached key once per query head (`repeat_kv`) when queries are grouped and a mask is
given. Here the query heads that share a key head are stacked along the query axis instead: the same sums, and the cache is read
once. What a token may read is what the model's mask says (see `masks`), which knows each row's length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from eft_engine.errors import UnsupportedModelError
from eft_engine.models.layout import BatchLayout, current_layout
from eft_engine.models.temperature import temperature_of


def slot_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of new tokens over their slots.

    Args:
        module: the attention module (for errors; part of transformers' signature, like `dropout`).
        query: `[rows, heads, columns, head_dim]`.
        key, value: `[rows, kv_heads, window, head_dim]`, as `SlotLayer.update` returned them.
        attention_mask: of `slot_mask`, perhaps changed by the model; None: all up to a token's own position.
        scaling: factor on the scores; None: `head_dim ** -0.5`.
        softcap: scores s become `softcap * tanh(s / softcap)` (Gemma 2).
        s_aux: attention sinks `[heads]`: a score per head that takes part in the softmax and has no value (gpt-oss).
        others: what else models pass along. Switches are for other parts of a model, and positions are in queries and keys
            already; what could change the result is refused.

    Returns:
        `[rows, columns, heads, head_dim]`, and no attention weights.

    Raises:
        UnsupportedModelError: no pass of an engine is being computed, or attention is asked for something unknown.
    """
    layout = checked_layout(module, others)
    temperature = temperature_of(module)
    if temperature is not None:
        query = (query * temperature.factors(layout, query.device)).to(query.dtype)
    rows, heads, columns, head_dim = query.shape
    kv_heads = key.shape[1]
    num_groups = heads // kv_heads
    if attention_mask is not None and attention_mask.shape[1] > 1:  # a mask for each head
        mask = layout.mask(attention_mask, num_groups=1, dtype=query.dtype, device=query.device)
        assert mask is not None, "a mask was given"
        mask = mask.reshape(mask.shape[0], kv_heads, num_groups * columns, -1)
    else:
        mask = layout.mask(attention_mask, num_groups=num_groups, dtype=query.dtype, device=query.device)
    query = query.reshape(rows, kv_heads, num_groups * columns, head_dim)
    if softcap is None and s_aux is None:
        output = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    else:
        scores = query @ key.transpose(2, 3) * (head_dim**-0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if mask is not None:
            scores = scores + mask
        if s_aux is not None:
            sinks = s_aux.to(scores.dtype).reshape(1, kv_heads, num_groups, 1, 1)
            sinks = sinks.expand(rows, -1, -1, columns, -1).reshape(rows, kv_heads, num_groups * columns, 1)
            scores = torch.cat([scores, sinks], dim=-1)
        shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        output = shares[..., : key.shape[2]] @ value
    return output.reshape(rows, heads, columns, value.shape[-1]).transpose(1, 2).contiguous(), None


def checked_layout(module: torch.nn.Module, others: Mapping[str, Any]) -> BatchLayout:
    """The layout that every attention function of the engine needs.

    Args:
        module: the attention module, for errors.
        others: what it asks for beyond the arguments that the function knows.

    Raises:
        UnsupportedModelError: no pass of an engine is being computed, or attention is asked for something unknown.
    """
    unknown = [name for name, value in others.items() if isinstance(value, (Tensor, float)) and name != "position_ids"]
    if unknown or others.get("is_causal") is False:
        raise UnsupportedModelError(
            f"{type(module).__name__} asks attention for what the engine's does not know: "
            f"{', '.join(unknown) or 'is_causal=False'}"
        )
    layout = current_layout()
    if layout is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} was called directly while an engine holds its model; close the engine first, or load "
            "another copy of the model"
        )
    return layout
