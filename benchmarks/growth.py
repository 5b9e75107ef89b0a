"""How does the time per token grow with the context?

    python -m benchmarks.growth

SmolLM2 alone and with its pair, float32, plain decoding behind contexts of several lengths, in turn in every round; prompts are
read once and stay warm. The time per token is split inside the engine's own forward passes: what the attention function takes,
which has to read every cached key and value, and all the rest, which should not depend on the context. Attention itself is
compared with the same function of torch over tensors of that size alone, in the same round.

Subtracting attention that was timed at another moment, as an earlier form of this script did, leaves a small difference of two
large numbers: on a busy machine it showed growth where there is none.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from benchmarks.report import finish
from benchmarks.rounds import CpuTime, clock, count_cpu_time
from benchmarks.smollm2 import shared_engine
from eft_engine import Engine, EngineConfig, SamplingParams, SpeculationOptions
from eft_engine.models.language_model import LanguageModel

NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 30, 9, 3, 64
"""SmolLM2-135M."""


@torch.inference_mode()
def attention_seconds(context_len: int) -> float:
    """One token in every layer of one network, over positions that have not been read just before."""
    groups = NUM_HEADS // NUM_KV_HEADS
    layers = [
        tuple(torch.randn(1, NUM_KV_HEADS, length, HEAD_DIM) for length in (groups, context_len, context_len))
        for _ in range(NUM_LAYERS)
    ]
    torch.zeros(2**24)  # 64 MB: processor caches hold something else now, as behind a pass over the weights
    seconds = []
    for query, key, value in layers:
        started = clock()
        scaled_dot_product_attention(query, key, value)
        seconds.append(clock() - started)
    return NUM_LAYERS * statistics.median(seconds)


@contextmanager
def timed_attention(engine: Engine) -> Iterator[list[float]]:
    """Seconds of every call of the engine's attention function."""
    networks = [network for network in engine._trio.networks if isinstance(network, LanguageModel)]
    (name,) = {network.model.config._attn_implementation for network in networks}
    own = AttentionInterface()[name]
    seconds: list[float] = []

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = clock()
        result = own(*args, **kwargs)
        seconds.append(clock() - started)
        return result

    AttentionInterface.register(name, timed)
    try:
        yield seconds
    finally:
        AttentionInterface.register(name, own)


def decode(engine: Engine, prompt: str, weight: float, max_tokens: int) -> tuple[float, float]:
    """Median seconds per token behind `prompt`, and of its attention."""
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    stamps = []
    with timed_attention(engine) as seconds:
        for _ in engine.stream(prompt, sampling=sampling, reward_weights=weight):
            stamps.append(clock())
    per_token = NUM_LAYERS * len({network.name for network in engine._trio.networks})
    steady = seconds[-per_token * (len(stamps) - 2) :]
    return (
        statistics.median(b - a for a, b in itertools.pairwise(stamps)),
        statistics.median(sum(steady[start : start + per_token]) for start in range(0, len(steady), per_token)),
    )


def main(
    lengths: Annotated[list[int] | None, typer.Option("--length", help="Context lengths. [500, 2000, 8000]")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens per run.")] = 16,
    rounds: Annotated[int, typer.Option(help="Repetitions; medians are reported.")] = 5,
    cpu_time: CpuTime = False,
) -> None:
    """Run and print."""
    if cpu_time:
        count_cpu_time()
    lengths = lengths or [500, 2000, 8000]
    cases = [(weight, length) for weight in (0.0, 0.5) for length in lengths]
    rows: dict[tuple[float, int], list[tuple[float, float, float]]] = {case: [] for case in cases}
    config = EngineConfig(
        speculation=SpeculationOptions(drafter="none"),
        max_warm_prefixes=4 * len(lengths),
        cpu_kernels=False,  # in kernels attention is no function of its own
    )
    with shared_engine(config) as engine:
        filler = engine.tokenizer.encode(
            "The river carries sand from the hills to the sea, year after year. " * 800, add_special_tokens=False
        )
        prompts = {
            length: f"{length}. {engine.tokenizer.decode(filler[: length - 8], skip_special_tokens=False)}"
            for length in lengths
        }  # no prompt begins another one
        for index in range(rounds + 1):
            for weight, length in cases:
                alone = attention_seconds(length) * (1 if weight == 0.0 else 2)
                total, attention = decode(engine, prompts[length], weight, max_tokens)
                if index:  # the first round reads the prompts
                    rows[weight, length].append((total - attention, attention, attention / alone))
    table = Table(title=f"time per token by context, medians of {rounds} rounds")
    for heading in ("weight", "context", "attention, ms", "by torch alone", "all the rest, ms", "growth of the rest"):
        table.add_column(heading, justify="right")
    result = {}
    for weight, length in cases:
        own, first = rows[weight, length], rows[weight, lengths[0]]
        rest, attention, by_alone = (statistics.median(column) for column in zip(*own, strict=True))
        growth = statistics.median(a[0] / b[0] for a, b in zip(own, first, strict=True))
        table.add_row(
            f"{weight:g}",
            str(length),
            f"{attention * 1e3:.1f}",
            f"{by_alone:.2f}x",
            f"{rest * 1e3:.1f}",
            f"{growth:.2f}x",
        )
        result[f"{length}, weight {weight:g}"] = {
            "rest_s": rest,
            "attention_s": attention,
            "attention_by_torch_alone": by_alone,
            "growth_of_rest": growth,
        }
    Console().print(table)
    finish("growth", {"runs": result, "max_tokens": max_tokens, "rounds": rounds, "cpu_time": cpu_time})


if __name__ == "__main__":
    typer.run(main)
