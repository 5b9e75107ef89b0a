"""What memory alone allows on a GPU, on paper: bytes that a step reads, and the bound of its speed beside the base alone.

    python -m benchmarks.gpu_bounds --acceptance 0.7

A step of few tokens is bound by reading weights once; caches of short texts and adapters are small beside them and left out.
Drafts are the tuned model's: it reads its weights for each of them and once more, base and reference once for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.report import finish
from eft_engine.engine.acceptance import expected_tokens

BYTES = 2
"""Of a weight in bfloat16."""


@dataclass(frozen=True)
class Sizes:
    """Billions of weights of the base, and of each model of the pair."""

    base: float
    small: float


TRIOS = {"8B + 1B": Sizes(8.0, 1.2), "32B + 3B": Sizes(32.8, 3.1), "70B + 1B": Sizes(70.6, 1.2)}


def step_gigabytes(sizes: Sizes, num_drafts: int) -> float:
    """That a step reads."""
    return BYTES * (sizes.base + sizes.small + (num_drafts + 1) * sizes.small)


def bound(sizes: Sizes, num_drafts: int, acceptance: float) -> float:
    """Tokens per second beside those of the base alone."""
    return expected_tokens(acceptance, num_drafts) * BYTES * sizes.base / step_gigabytes(sizes, num_drafts)


def main(
    acceptance: Annotated[float, typer.Option(help="Share of drafts that are accepted.")] = 0.7,
    bandwidth: Annotated[float, typer.Option(help="Of the device, GB/s.")] = 4800.0,
) -> None:
    """The table of docs/performance.md."""
    table = Table(title=f"bounds by bytes, bfloat16, {bandwidth:.0f} GB/s, {acceptance:.0%} of drafts accepted")
    for heading in (
        "trio",
        "plain step, GB",
        "at least, ms",
        "plain / base alone",
        "best number of drafts",
        "drafted / base alone",
    ):
        table.add_column(heading, justify="right")
    result: dict[str, Any] = {}
    for name, sizes in TRIOS.items():
        best = max(range(17), key=lambda number: bound(sizes, number, acceptance))
        plain = step_gigabytes(sizes, 0)
        row = {
            "plain_gb": plain,
            "ms": 1e3 * plain / bandwidth,
            "plain": bound(sizes, 0, acceptance),
            "drafts": best,
            "drafted": bound(sizes, best, acceptance),
        }
        table.add_row(
            name, f"{plain:.1f}", f"{row['ms']:.1f}", f"{row['plain']:.2f}", str(best), f"{row['drafted']:.2f}"
        )
        result[name] = row
    Console().print(table)
    finish("gpu_bounds", {"acceptance": acceptance, "bandwidth": bandwidth, "trios": result})


if __name__ == "__main__":
    typer.run(main)
