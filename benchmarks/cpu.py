"""Three things that decide how fast a forward pass is on a CPU.

python -m benchmarks.cpu linear      float32 product of few rows: torch's linear layer against the exchanged operands
python -m benchmarks.cpu wide        the same for an output layer, whole and in parts
python -m benchmarks.cpu threads     a forward pass in a second thread, while the first one keeps its OpenMP workers or not
"""

from __future__ import annotations

import threading
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from benchmarks.report import finish
from benchmarks.rounds import CpuTime, count_cpu_time, median_seconds
from benchmarks.smollm2 import separate_trio
from eft_engine.engine.openmp import release_workers
from eft_engine.models.language_model import Block, LanguageModel
from eft_engine.models.linear import few_rows_linear, wide_linear

app = typer.Typer(add_completion=False, help=__doc__)
Repetitions = Annotated[int, typer.Option(help="Timed runs; their median counts.")]


@app.command()
@torch.inference_mode()
def linear(repetitions: Repetitions = 9) -> None:
    """60 matrices of 1536 x 576, 212 MB together, as the layers of a model."""
    weights = [torch.randn(1536, 576) for _ in range(60)]
    table = Table(title="60 products with 1536 x 576, float32")
    for heading in ("rows", "linear, ms", "exchanged, ms", "linear / exchanged"):
        table.add_column(heading, justify="right")
    result = {}
    for num_rows in (1, 2, 3, 4, 5, 8, 16, 32, 64, 128):
        rows = torch.randn(num_rows, 576)
        plain = median_seconds(lambda x=rows: [functional.linear(x, weight) for weight in weights], repetitions)
        exchanged = median_seconds(lambda x=rows: [few_rows_linear(x, weight, None) for weight in weights], repetitions)
        table.add_row(str(num_rows), f"{plain * 1e3:.1f}", f"{exchanged * 1e3:.1f}", f"{plain / exchanged:.2f}")
        result[num_rows] = plain / exchanged
    Console().print(table)
    finish("cpu_linear", {"linear_by_exchanged": result})


@app.command()
@torch.inference_mode()
def wide(
    repetitions: Repetitions = 9,
    cpu_time: CpuTime = False,
) -> None:
    """One product with 49152 x 576, SmolLM2's output layer."""
    if cpu_time:
        count_cpu_time()
    weight = torch.randn(49152, 576)
    ways = {"linear": functional.linear, "exchanged": few_rows_linear, "in parts": wide_linear}
    table = Table(title="one product with 49152 x 576, float32, ms")
    for heading in ("rows", *ways, "linear / in parts"):
        table.add_column(heading, justify="right")
    result = {}
    for num_rows in (1, 2, 4, 8, 16, 24, 32, 48, 64, 96):
        rows = torch.randn(num_rows, 576)
        seconds = {
            name: median_seconds(lambda own=way, x=rows: own(x, weight, None), repetitions)
            for name, way in ways.items()
        }
        ratio = seconds["linear"] / seconds["in parts"]
        table.add_row(str(num_rows), *(f"{own * 1e3:.1f}" for own in seconds.values()), f"{ratio:.2f}")
        result[num_rows] = {"seconds": seconds, "linear_by_parts": ratio}
    Console().print(table)
    finish("cpu_wide", {"rows": result, "cpu_time": cpu_time})


@app.command()
def threads(repetitions: Repetitions = 15) -> None:
    """One token through SmolLM2-135M, float32."""
    model = LanguageModel(separate_trio().base, name="base", self_check=False)
    slot = model.kv_cache.allocate()
    model.forward([Block(slot, list(range(32)), 1)])

    def one_token() -> None:
        model.forward([Block(slot, [1], 1)])
        slot.truncate(32)

    def in_second_thread() -> float:
        seconds: list[float] = []
        thread = threading.Thread(target=lambda: seconds.append(median_seconds(one_token, repetitions)))
        thread.start()
        thread.join()
        return seconds[0]

    first = median_seconds(one_token, repetitions)
    kept = in_second_thread()
    release_workers()
    released = in_second_thread()
    table = Table(title="one token, by the thread that computes it")
    table.add_column("thread")
    table.add_column("times the first thread's", justify="right")
    for name, seconds in (
        ("second, the first keeps its workers", kept),
        ("second, the first has released them", released),
    ):
        table.add_row(name, f"{seconds / first:.2f}")
    Console().print(table)
    finish("cpu_threads", {"kept_by_first": kept / first, "released_by_first": released / first})


if __name__ == "__main__":
    app()
