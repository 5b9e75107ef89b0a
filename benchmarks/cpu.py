"""Two things that decide how fast a forward pass is on a CPU.

python -m benchmarks.cpu linear      products of few rows: torch's linear layer against packed weights
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
from benchmarks.smollm2 import Dtype, separate_trio
from eft_engine.engine.openmp import release_workers
from eft_engine.models.language_model import LanguageModel
from eft_engine.models.linear import pack, packed_linear
from eft_engine.models.network import Block

app = typer.Typer(add_completion=False, help=__doc__)
Repetitions = Annotated[int, typer.Option(help="Timed runs; their median counts.")]


@app.command()
@torch.inference_mode()
def linear(repetitions: Repetitions = 9, dtype: Dtype = "float32", cpu_time: CpuTime = False) -> None:
    """60 matrices of 1536 x 576, as the layers of a model, and one of 49152 x 576, SmolLM2's output layer."""
    if cpu_time:
        count_cpu_time()
    kind = getattr(torch, dtype)
    parts = {"60 of 1536 x 576": [torch.randn(1536, 576).to(kind) for _ in range(60)]}
    parts["49152 x 576"] = [torch.randn(49152, 576).to(kind)]
    table = Table(title=f"products, {dtype}")
    for heading in ("matrices", "rows", "linear, ms", "packed, ms", "linear / packed"):
        table.add_column(heading, justify="right")
    result: dict[str, dict[int, float]] = {name: {} for name in parts}
    for name, weights in parts.items():
        packed = [pack(weight) for weight in weights]
        for num_rows in (1, 2, 4, 8, 16, 24, 32, 64, 256):
            rows = torch.randn(num_rows, 576).to(kind)
            plain_s = median_seconds(lambda x=rows, own=weights: [functional.linear(x, w) for w in own], repetitions)
            packed_s = median_seconds(lambda x=rows, own=packed: [packed_linear(x, w) for w in own], repetitions)
            ratio = plain_s / packed_s
            table.add_row(name, str(num_rows), f"{plain_s * 1e3:.1f}", f"{packed_s * 1e3:.1f}", f"{ratio:.2f}")
            result[name][num_rows] = ratio
        table.add_section()
    Console().print(table)
    finish("cpu_linear", {"linear_by_packed": result, "dtype": dtype, "cpu_time": cpu_time})


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
