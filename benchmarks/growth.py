"""How does the time per token grow with the context?

    python -m benchmarks.growth

SmolLM2 alone and with its pair, float32, plain decoding behind contexts of several lengths. "Attention" is what one decode step's
attention over that many cached positions takes by itself, all layers, the same tensors of keys and values read; growth beyond it
would be the engine's own.
"""

from __future__ import annotations

import statistics
import time
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.report import finish
from benchmarks.smollm2 import NO_DRAFTS, shared_engine
from eft_engine import SamplingParams

NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 30, 9, 3, 64
"""SmolLM2-135M."""


@torch.inference_mode()
def attention_seconds(context_len: int, repetitions: int = 9) -> float:
    """Attention of one token over `context_len` positions in every layer of one network."""
    groups = NUM_HEADS // NUM_KV_HEADS
    layers = [
        tuple(torch.randn(1, NUM_KV_HEADS, length, HEAD_DIM) for length in (groups, context_len, context_len))
        for _ in range(NUM_LAYERS)
    ]
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        for query, key, value in layers:
            scaled_dot_product_attention(query, key, value)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main(
    lengths: Annotated[list[int] | None, typer.Option("--length", help="Context lengths. [500, 2000, 8000]")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens per run.")] = 24,
) -> None:
    """Run and print."""
    table = Table(title="time per token by context")
    for heading in ("context", "weight", "per token, ms", "attention alone, ms", "per token without attention, growth"):
        table.add_column(heading, justify="right")
    result = {}
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    own: dict[float, float] = {}
    with shared_engine(NO_DRAFTS) as engine:
        filler = engine.tokenizer.encode("The river carries sand from the hills to the sea, year after year. " * 800)
        for length in lengths or [500, 2000, 8000]:
            prompt = engine.tokenizer.decode(filler[:length])
            attention = attention_seconds(length)
            for weight in (0.0, 1.0):
                metrics = engine.generate(prompt, sampling=sampling, reward_weights=weight).metrics
                streams = sum(count > 0 for count in metrics.num_forwards.values())
                rest = metrics.tpot_s - streams * attention
                growth = rest / own.setdefault(weight, rest)
                table.add_row(
                    str(length),
                    f"{weight:g}",
                    f"{metrics.tpot_s * 1e3:.1f}",
                    f"{streams * attention * 1e3:.1f}",
                    f"{growth:.2f}x",
                )
                result[f"{length}, weight {weight:g}"] = {"tpot_s": metrics.tpot_s, "growth_beyond_attention": growth}
    Console().print(table)
    finish("growth", {"runs": result, "max_tokens": max_tokens})


if __name__ == "__main__":
    typer.run(main)
