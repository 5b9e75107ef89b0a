"""How much faster can requests together be than one after another on this processor, whatever an engine does?

One after another, every request pays for reading all weights at every token. Together the weights are read once, and what is
left is arithmetic, which grows with the rows. Three limits, from loose to tight, of

    sum over requests of the time that its rows take / time that all rows take


arithmetic   all rows' multiplications at the rate of a large square product, or reading the weights once if that takes longer
products     the network's own matrices times that many rows, nothing else
passes       whole forward passes over slots, as the engine runs them, adapters included, without composing or choosing
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.rounds import median_seconds
from eft_engine import Engine
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.network import Block

Rows = Sequence[str | None]
"""Adapter of every row."""

CONTEXT_LEN = 64


def batch_limits(engine: Engine, requests: Sequence[Rows], *, repetitions: int = 5) -> dict[str, float]:
    """The limits for an idle engine of one network; `requests` are the rows that each of them needs."""
    (network,) = engine._trio.networks
    assert type(network) is LanguageModel, "limits are those of torch's products: cpu_kernels=False"
    everything = [row for rows in requests for row in rows]
    sizes = sorted({len(rows) for rows in requests} | {len(everything)})
    kinds = {tuple(rows) for rows in requests} | {tuple(everything)}
    products = {size: products_seconds(network, size, repetitions) for size in sizes}
    passes = {rows: pass_seconds(network, rows, repetitions) for rows in kinds}
    alone = sum(products[len(rows)] for rows in requests)
    return {
        "arithmetic": alone / arithmetic_seconds(network, len(everything), repetitions),
        "products": alone / products[len(everything)],
        "passes": sum(passes[tuple(rows)] for rows in requests) / passes[tuple(everything)],
    }


def _layers(network: LanguageModel) -> list[Any]:
    named = network.model.named_modules()
    return [module for name, module in named if isinstance(module, torch.nn.Linear) and ".lora_" not in name]


@torch.inference_mode()
def arithmetic_seconds(network: LanguageModel, num_rows: int, repetitions: int) -> float:
    """The larger of multiplying at the rate of a square product and of reading the weights at the rate of a sum."""
    num_weights: int = sum(layer.weight.numel() for layer in _layers(network))
    dtype = _layers(network)[0].weight.dtype
    square = torch.randn(1024, 1024, dtype=dtype)
    per_product = median_seconds(lambda: square @ square, repetitions) / 1024**3
    memory = torch.ones(2**26, dtype=dtype)
    per_value = median_seconds(memory.sum, repetitions) / memory.numel()
    return max(num_weights * num_rows * per_product, num_weights * per_value)


@torch.inference_mode()
def products_seconds(network: LanguageModel, num_rows: int, repetitions: int) -> float:
    """Every linear layer once."""
    layers = _layers(network)
    dtype = layers[0].weight.dtype
    inputs = {layer.in_features: torch.randn(num_rows, layer.in_features, dtype=dtype) for layer in layers}
    return median_seconds(lambda: [layer(inputs[layer.in_features]) for layer in layers], repetitions)


@torch.inference_mode()
def pass_seconds(network: LanguageModel, rows: Rows, repetitions: int) -> float:
    """One token for every row."""
    slots = [network.kv_cache.allocate() for _ in rows]
    network.forward([Block(slot, [1] * CONTEXT_LEN, 0, row) for slot, row in zip(slots, rows, strict=True)])

    def one_token() -> None:
        network.forward([Block(slot, [1], 1, row) for slot, row in zip(slots, rows, strict=True)])
        for slot in slots:
            slot.truncate(CONTEXT_LEN)

    seconds = median_seconds(one_token, repetitions)
    for slot in slots:
        network.kv_cache.release(slot)
    return seconds
