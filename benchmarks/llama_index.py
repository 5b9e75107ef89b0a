"""Is async real in LlamaIndex? Wall time of 4 `achat` calls together against one after another, and the event loop's longest pause.

python -m benchmarks.llama_index

Small random networks (a base of 6 layers x 512, a pair of 4 x 256), so that it is the engine's and the adapter's work that counts.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Annotated

import typer
from llama_index.core.llms import ChatMessage
from rich.console import Console
from rich.table import Table

from benchmarks.report import finish
from eft_engine import Engine, EngineConfig, LoadedPair, SpeculationOptions
from eft_integrations.llama_index import EFTLLM
from tests.toy import make_model, make_tokenizer

QUESTIONS = ["Tell me of lighthouses.", "What do ferries carry?", "Who keeps the mill?", "Where is bread sold?"]
TICK_S = 0.002
"""How long the ticking task sleeps; what a gap has beyond that is the loop's pause."""


def make_engine() -> Engine:
    """Three separate networks without drafting, whose acceptance would differ from run to run."""
    base = make_model("llama", hidden_size=512, num_layers=6, context_len=2048)
    tuned, reference = (
        make_model("llama", hidden_size=256, num_layers=4, seed=seed, context_len=2048) for seed in (1, 2)
    )
    return Engine.from_models(
        base,
        tokenizer=make_tokenizer(),
        pairs={"chat": LoadedPair(tuned, reference)},
        config=EngineConfig(speculation=SpeculationOptions(drafter="none")),
    )


async def ask(llm: EFTLLM, question: str) -> None:
    """One call."""
    await llm.achat([ChatMessage(role="user", content=question)])


async def timed(llm: EFTLLM, *, together: bool) -> float:
    """Seconds for all questions."""
    started = time.perf_counter()
    if together:
        await asyncio.gather(*[ask(llm, question) for question in QUESTIONS])
    else:
        for question in QUESTIONS:
            await ask(llm, question)
    return time.perf_counter() - started


async def gaps(llm: EFTLLM, *, idle_s: float = 0.0) -> list[float]:
    """Seconds between ticks of the event loop: while all questions are answered together, or while nothing runs."""
    found = []
    work = asyncio.gather(*[ask(llm, question) for question in QUESTIONS]) if not idle_s else asyncio.sleep(idle_s)
    task = asyncio.ensure_future(work)
    last = time.perf_counter()
    while not task.done():
        await asyncio.sleep(TICK_S)
        now = time.perf_counter()
        found.append(now - last)
        last = now
    await task
    return found


def main(
    rounds: Annotated[int, typer.Option(help="Repetitions; medians of their ratios are reported.")] = 5,
    max_tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 64,
) -> None:
    """Measure both."""
    with make_engine() as engine:
        llm = EFTLLM(engine=engine, temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        asyncio.run(timed(llm, together=True))  # warm up
        rows = [[asyncio.run(timed(llm, together=together)) for together in (False, True)] for _ in range(rounds)]
        pauses = [asyncio.run(gaps(llm)) for _ in range(rounds)]
        quiet = asyncio.run(gaps(llm, idle_s=sum(map(sum, pauses)) / rounds))
    serial, together = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(b / a for a, b in rows)
    largest = [max(own) * 1000 for own in pauses]
    ticks = sorted(gap for own in pauses for gap in own)
    p99_ms = ticks[int(0.99 * len(ticks))] * 1000
    table = Table(title=f"4 answers of {max_tokens} tokens, medians of {rounds} rounds")
    for heading in (
        "serial s",
        "together s",
        "ratio",
        "ticks",
        "p99 gap ms",
        "longest gap ms (per round)",
        "idle loop ms",
    ):
        table.add_column(heading, justify="right")
    per_round = ", ".join(f"{gap:.1f}" for gap in largest)
    table.add_row(
        f"{serial:.2f}",
        f"{together:.2f}",
        f"{ratio:.2f}x",
        str(len(ticks)),
        f"{p99_ms:.1f}",
        per_round,
        f"{max(quiet) * 1000:.1f}",
    )
    Console().print(table)
    finish(
        "llama_index",
        {
            "rounds": rounds,
            "max_tokens": max_tokens,
            "serial_s": serial,
            "together_s": together,
            "ratio": ratio,
            "num_ticks": len(ticks),
            "p99_gap_ms": p99_ms,
            "longest_gap_ms": max(largest),
            "median_longest_gap_ms": statistics.median(largest),
            "longest_gap_of_idle_loop_ms": max(quiet) * 1000,
        },
    )


if __name__ == "__main__":
    typer.run(main)
