"""Host values to a device, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def upload(values: Sequence[Any] | Tensor, device: torch.device, *, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of `values` on `device`.

    A copy from ordinary memory to a GPU first waits until the GPU has done everything before it; one from pinned memory is queued.

    >>> upload([1, 2], torch.device("cpu"))
    tensor([1, 2])
    """
    tensor = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
