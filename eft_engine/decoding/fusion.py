"""Several elementwise kernels as one, where launching them is what costs: on accelerators."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a pure function of tensors for calls whose first argument is on an accelerator; on a CPU it runs as written.

    Compilation happens at the first such call. Where it fails (no compiler on the machine, for instance) this is said once, and the
    function runs as written from then on: the same numbers, more kernels.
    """
    compiled: Callable[P, R] | None = None

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal compiled
        first = args[0]
        if not isinstance(first, Tensor) or first.device.type == "cpu":
            return function(*args, **kwargs)
        if compiled is None:
            compiled = torch.compile(function, dynamic=True)
        try:
            return compiled(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            compiled = function
            logger.warning("%s cannot be compiled here; it runs unfused", function.__name__, exc_info=True)
            return function(*args, **kwargs)

    return call
