"""Whether the kernels are faster than torch on this machine: measured once per dtype, and remembered.

Processors with matrix units (AMX) read prompts faster in torch than any kernel without them; elsewhere the kernels are ahead, most
of all with single tokens, where torch spends its time on dispatching small operations.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from eft_engine.models.linear import pack, packed_is_faster, packed_linear
from eft_engine.models.native.library import PackedMatrix, apart
from eft_engine.models.native.quantising import Kind
from eft_engine.models.remembered import recall, remember

SHAPE = (4096, 1024)
PROMPT_LEN = 256
TOKENS_PER_PROMPT = 128
"""Tokens that are written for each prompt of `PROMPT_LEN`."""
SMALL_OPERATIONS = 8
"""Of torch beside each product of a layer."""
REPETITIONS = 3


@functools.cache
def kernels_are_faster(dtype: torch.dtype) -> bool:
    """Whether the products of a prompt and an answer take less time in the kernels than in torch, with one thread each."""
    known = recall("choices", "kernels", dtype, torch.__version__)
    if known is None:
        known = remember("choices", "kernels", dtype, torch.__version__, value=_measure(dtype))
    return bool(known)


@torch.inference_mode()
def _measure(dtype: torch.dtype) -> bool:
    weight = torch.ones(SHAPE, dtype=dtype)  # random numbers would take longer than the measurement
    matrix = PackedMatrix(Kind.F32 if dtype == torch.float32 else Kind.BF16, SHAPE[1], apart([SHAPE[0]]))
    matrix.put(0, weight)
    product: Callable[[Tensor], Tensor] = functools.partial(functional.linear, weight=weight)
    if packed_is_faster(dtype):
        product = functools.partial(packed_linear, packed=pack(weight))

    def in_torch(rows: Tensor) -> None:
        product(rows)
        for _ in range(SMALL_OPERATIONS):
            rows = rows * 0.5

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = [
            TOKENS_PER_PROMPT * _median(run, torch.ones(1, SHAPE[1], dtype=kind))
            + _median(run, torch.ones(PROMPT_LEN, SHAPE[1], dtype=kind))
            for run, kind in ((matrix.product, torch.float32), (in_torch, dtype))
        ]
    finally:
        torch.set_num_threads(before)
    return seconds[0] < seconds[1]


def _median(run: Callable[[Tensor], object], rows: Tensor) -> float:
    run(rows)
    seconds = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        run(rows)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
