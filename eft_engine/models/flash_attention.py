"""Attention by the flash-attn package: it takes one length per row, so no mask is built and nothing behind a row's end is read.

The kernel aligns queries to the end of a row's keys: with a length of n, the last query stands at position n - 1. Rows of one pass
have different numbers of new tokens and are padded on the right, and the cache writes padded columns too. So a row's length is
counted with its padding: then every column stands at the position it was written to and sees what lies up to there. What
padded columns give, nobody reads.
"""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eft_engine.errors import UnsupportedModelError
from eft_engine.models.attention import checked_layout

MAX_HEAD_DIM = 256
MIN_CAPABILITY = (8, 0)
"""Oldest GPU generation with the kernels (Ampere)."""


def flash_attention(
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
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of new tokens over their slots; arguments, result and errors as for `slot_attention`, and further

    Args:
        sliding_window: number of positions a token may look back, itself included; None: all.

    Raises:
        UnsupportedModelError: the model has attention sinks, or a mask that is not a matter of lengths.
    """
    from flash_attn import flash_attn_with_kvcache

    if s_aux is not None or attention_mask is not None:
        what = "attention sinks" if s_aux is not None else "a mask of its own"
        raise UnsupportedModelError(
            f"{type(module).__name__} has {what}, which attention='flash' does not know; EngineConfig(attention='sdpa') does"
        )
    positions = checked_layout(module, others).indices(query.device)[1]  # [rows, columns]
    options = {} if softcap is None else {"softcap": softcap}  # older releases have no such parameter
    output = flash_attn_with_kvcache(
        query.transpose(1, 2),  # [rows, columns, heads, head_dim]
        key.transpose(1, 2),  # [rows, window, kv_heads, head_dim], a view of the slots
        value.transpose(1, 2),
        cache_seqlens=(positions[:, -1] + 1).to(torch.int32),
        softmax_scale=scaling,
        causal=True,
        # The kernel counts the positions before a token, `sliding_window` also the token's own.
        window_size=(-1, -1) if sliding_window is None else (sliding_window - 1, 0),
        **options,
    )
    return output, None


def missing_for_flash(model: PreTrainedModel) -> list[str]:
    """What this machine or model lacks for `flash_attention`, in words."""
    config = model.config.get_text_config()
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float16, torch.bfloat16}
    devices = {p.device for p in model.parameters()}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    missing = [
        lack
        for lacks, lack in (
            (any(device.type != "cuda" for device in devices), f"a GPU for all of it ({_names(devices)})"),
            (bool(dtypes), f"float16 or bfloat16 weights ({_names(dtypes)})"),
            (
                head_dim > MAX_HEAD_DIM or head_dim % 8,
                f"a head size that is a multiple of 8 up to {MAX_HEAD_DIM} ({head_dim})",
            ),
        )
        if lacks
    ]
    old = [
        device
        for device in devices
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < MIN_CAPABILITY
    ]
    if old:
        missing.append(f"a GPU of compute capability 8.0 or later ({_names(old)})")
    return [*missing, *_missing_package(softcap=bool(getattr(config, "attn_logit_softcapping", None)))]


def _missing_package(*, softcap: bool) -> list[str]:
    if importlib.util.find_spec("flash_attn") is None:
        return ["the package flash-attn (pip install flash-attn --no-build-isolation)"]
    try:
        from flash_attn import flash_attn_with_kvcache
    except ImportError as error:  # built for another torch or CUDA
        return [f"a flash-attn that can be imported ({error})"]
    if softcap and "softcap" not in inspect.signature(flash_attn_with_kvcache).parameters:
        return ["flash-attn 2.6 or later, the first with soft-capped scores"]
    return []


def _names(things: Any) -> str:
    return ", ".join(sorted(map(str, things)))
