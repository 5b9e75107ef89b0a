"""Runs that are compared: all of them in turn in every round, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from eft_engine import Engine, SamplingParams, SpeculationOptions

CpuTime = Annotated[
    bool, typer.Option("--cpu-time", help="Count CPU seconds of one thread (OMP_NUM_THREADS=1): for a busy machine.")
]
_cpu_time = False


def count_cpu_time() -> None:
    """Let `clock` count this process's CPU seconds, which programs beside it do not add to.

    Needs OMP_NUM_THREADS=1, as threads that wait for one another count too.
    """
    global _cpu_time
    if torch.get_num_threads() != 1:
        raise RuntimeError(
            f"CPU time is only meaningful with OMP_NUM_THREADS=1, torch has {torch.get_num_threads()} threads"
        )
    _cpu_time = True


def clock() -> float:
    """Seconds, of the wall clock unless `count_cpu_time` was called."""
    return time.process_time() if _cpu_time else time.perf_counter()


def median_seconds(run: Callable[..., Any], repetitions: int) -> float:
    """After one run that is not counted."""
    run()
    seconds = []
    for _ in range(repetitions):
        started = clock()
        run()
        seconds.append(clock() - started)
    return statistics.median(seconds)


def run_engine(
    engine: Engine, prompts: Any, *, max_tokens: int, weight: float, speculation: SpeculationOptions
) -> tuple[Any, float]:
    """Outputs (one, or a list for a list of prompts) and seconds of one greedy call."""
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    started = clock()
    outputs = engine.generate(prompts, sampling=sampling, reward_weights=weight, speculation=speculation)
    return outputs, clock() - started


def medians_of_ratios(times: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over rounds of slow / fast."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def measure(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every run, all of them in turn in every round; the first, unreported round warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 1):
        for name, run in runs.items():
            seconds = run()
            if index:
                times[name].append(seconds)
                Console(stderr=True).print(f"round {index} {name}: {seconds:.2f} s")
    return times


def show(title: str, times: dict[str, list[float]], num_tokens: int, slowest: str) -> dict[str, Any]:
    """Print a table and return its numbers."""
    table = Table(title=title)
    for heading in ("run", "tokens/s", f"times {slowest}"):
        table.add_column(heading, justify="right")
    result: dict[str, Any] = {}
    for name, seconds in times.items():
        speed, ratio = num_tokens / statistics.median(seconds), medians_of_ratios(times, slowest, name)
        table.add_row(name, f"{speed:.1f}", f"{ratio:.2f}x")
        result[name] = {"tokens_per_s": speed, "ratio": ratio}
    Console().print(table)
    return result
