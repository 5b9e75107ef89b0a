"""How much faster is a batch of 8 than the same 8 requests one after another? No speculation, SmolLM2 trio, greedy.

python -m benchmarks.batching
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.report import finish
from benchmarks.rounds import CpuTime, clock, count_cpu_time
from benchmarks.smollm2 import NO_DRAFTS, QUESTIONS, Dtype, separate_trio, shared_engine
from eft_engine import Engine, SamplingParams


def throughput(engine: Engine, *, together: bool, max_tokens: int, weight: float) -> float:
    """Generated tokens per second of wall clock over all questions."""
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    started = clock()
    batches = [prompts] if together else [[prompt] for prompt in prompts]
    outputs = [out for batch in batches for out in engine.generate(batch, sampling=sampling, reward_weights=weight)]
    return sum(out.usage.completion_tokens for out in outputs) / (clock() - started)


def main(
    rounds: Annotated[int, typer.Option(help="Repetitions; medians of their ratios are reported.")] = 3,
    max_tokens: Annotated[int, typer.Option(help="Tokens per request.")] = 32,
    weight: Annotated[float, typer.Option(help="Reward weight.")] = 0.5,
    dtype: Dtype = "float32",
    cpu_time: CpuTime = False,
) -> None:
    """Compare, for the trio on one set of weights and for three separate networks."""
    if cpu_time:
        count_cpu_time()
    table = Table(title=f"8 requests, {max_tokens} tokens each, weight {weight:g}, {dtype}, medians of {rounds} rounds")
    for heading in ("trio", "one by one tokens/s", "batch of 8 tokens/s", "ratio"):
        table.add_column(heading, justify="right")
    conditions = {"rounds": rounds, "max_tokens": max_tokens, "weight": weight, "dtype": dtype, "cpu_time": cpu_time}
    result: dict[str, object] = {**conditions}
    config = NO_DRAFTS.model_copy(update={"dtype": dtype})
    makers: dict[str, Callable[[], Engine]] = {
        "shared": lambda: shared_engine(config),
        "separate": lambda: separate_trio(dtype).engine(config),
    }
    for name, make in makers.items():
        with make() as engine:
            throughput(engine, together=True, max_tokens=4, weight=weight)  # warm up
            rows = [
                [
                    throughput(engine, together=together, max_tokens=max_tokens, weight=weight)
                    for together in (False, True)
                ]
                for _ in range(rounds)
            ]
        alone, batch = (statistics.median(column) for column in zip(*rows, strict=True))
        ratio = statistics.median(b / a for a, b in rows)
        table.add_row(name, f"{alone:.1f}", f"{batch:.1f}", f"{ratio:.2f}x")
        result[name] = {"one_by_one_tokens_per_s": alone, "batch_tokens_per_s": batch, "ratio": ratio}
    Console().print(table)
    finish("batching", result)


if __name__ == "__main__":
    typer.run(main)
