"""Who may read whom: the masks that models ask for, made row by row.

A model says what a token sees through transformers' mask functions (causal, windows, chunks, and what else it combines). They are
asked here with each row's own positions, so that whatever a model puts into its mask holds, whether or not it tells its
attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function

from eft_engine.errors import UnsupportedModelError
from eft_engine.models.layout import BatchLayout, current_layout
from eft_engine.transfer import upload

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of row, head, position of the query and position of the key, broadcast against each other: whether it is read."""


def slot_mask(
    *,
    mask_function: MaskFunction = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Tensor | None:
    """The mask of a pass over slots, as transformers asks for it (`ALL_MASK_ATTENTION_FUNCTIONS`).

    Args:
        mask_function: what the model says.
        attention_mask: padding `[rows, ...]`; a pass over slots has none, and models that make one up hide nothing by it.
        local_size: the window or chunk that is in `mask_function`; shorter texts do not feel it.
        allow_is_causal_skip: None may stand for "all up to its own position".
        device: where it is wanted.

    Returns:
        bool `[rows, 1, columns, window]`, or None.

    Raises:
        UnsupportedModelError: no pass of an engine is being computed, or tokens are to be hidden.
    """
    layout = _layout()
    if attention_mask is not None and not bool(attention_mask.all()):
        raise UnsupportedModelError("the model hides tokens by a padding mask of its own, which slots do not have")
    if allow_is_causal_skip and _is_causal(mask_function, local_size, layout):
        return None
    query = upload(layout.positions, torch.device(device))[:, None, :, None]
    rows = torch.arange(layout.num_rows, device=device)[:, None, None, None]
    heads = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    keys = torch.arange(layout.window, device=device)[None, None, None, :]
    return mask_function(rows, heads, query, keys).expand(layout.num_rows, -1, query.shape[2], layout.window)


class _Redirected:
    """Stands in transformers' table for one of its own mask functions."""

    def __init__(self, own: Callable[..., Tensor | None], *, is_added: bool) -> None:
        self._own = own
        self._is_added = is_added

    def __call__(self, *args: Any, **asked: Any) -> Tensor | None:
        if current_layout() is None:
            return self._own(*args, **asked)
        visible = slot_mask(*args, **asked | {"allow_is_causal_skip": False})
        if visible is None or not self._is_added:
            return visible
        dtype: torch.dtype = asked.get("dtype", torch.float32)
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)


def redirect_masks() -> None:
    """Let passes over slots have their masks where models compute attention by code of their own, which asks for transformers'
    masks: for "sdpa" bool, for "eager" in numbers to add to scores. They are always made, and everybody else gets what they
    always got.
    """
    for name, is_added in (("sdpa", False), ("eager", True)):
        own = ALL_MASK_ATTENTION_FUNCTIONS[name]
        if not isinstance(own, _Redirected):
            AttentionMaskInterface.register(name, _Redirected(own, is_added=is_added))


def kernel_mask(
    *,
    mask_function: MaskFunction = causal_mask_function,
    local_size: int | None = None,
    **_: Any,
) -> None:
    """For kernels that take a length per row and no mask: windows reach them as an argument of attention, nothing else does.

    Raises:
        UnsupportedModelError: the model wants another mask.
    """
    if _is_causal(mask_function, local_size, _layout()):
        return
    probe = torch.arange(2 * (local_size or 1) + 2)
    zero = torch.zeros(1, dtype=torch.long)
    if local_size is not None:
        seen = mask_function(zero, zero, probe[:, None], probe[None, :]).reshape(len(probe), len(probe))
        distance = probe[:, None] - probe[None, :]
        if torch.equal(seen, (distance >= 0) & (distance < local_size)):
            return
    raise UnsupportedModelError(
        "attention='flash' takes windows, and this model masks otherwise (chunks, for instance); "
        "EngineConfig(attention='sdpa') runs everywhere"
    )


def _is_causal(mask_function: MaskFunction, local_size: int | None, layout: BatchLayout) -> bool:
    """Whether every token of the pass reads all up to its own position."""
    return mask_function is causal_mask_function or (local_size is not None and layout.window <= local_size)


def _layout() -> BatchLayout:
    layout = current_layout()
    if layout is None:
        raise UnsupportedModelError(
            "a model that an engine holds was called directly; close the engine first, or load another copy of it"
        )
    return layout
