"""Do calls run together, and is async real? Calls together against one after another, and the event loop's longest pause.

    python -m benchmarks.adapters langchain        8 `ainvoke` calls, and `batch` of 8
    python -m benchmarks.adapters llama-index      4 `achat` calls

Small random networks (a base of 6 layers x 512, a pair of 4 x 256), so that it is the engine's and the adapter's work that counts.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import typer
from langchain_core.runnables import RunnableConfig
from llama_index.core.llms import ChatMessage
from rich.console import Console
from rich.table import Table

from benchmarks.report import finish
from eft_engine import Engine, EngineConfig, LoadedPair, SpeculationOptions
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM
from tests.toy import make_model, make_tokenizer

app = typer.Typer(add_completion=False, help=__doc__)
Rounds = Annotated[int, typer.Option(help="Repetitions; medians of their ratios are reported.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens per answer.")]
Ask = Callable[[str], Awaitable[object]]

QUESTIONS = [
    "Tell me of lighthouses.",
    "What do ferries carry?",
    "Who keeps the mill?",
    "Where is bread sold?",
    "When does the fair begin?",
    "How deep is the harbour?",
    "Why do gulls follow boats?",
    "Which bell rings at noon?",
]
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


async def timed(ask: Ask, questions: Sequence[str], *, together: bool) -> float:
    """Seconds for all questions."""
    started = time.perf_counter()
    if together:
        await asyncio.gather(*[ask(question) for question in questions])
    else:
        for question in questions:
            await ask(question)
    return time.perf_counter() - started


async def gaps(work: Awaitable[object]) -> list[float]:
    """Seconds between ticks of the event loop while `work` is done."""
    found = []
    task = asyncio.ensure_future(work)
    last = time.perf_counter()
    while not task.done():
        await asyncio.sleep(TICK_S)
        now = time.perf_counter()
        found.append(now - last)
        last = now
    await task
    return found


async def gaps_while_asking(ask: Ask, questions: Sequence[str]) -> list[float]:
    """`gaps` while all questions are answered together."""
    return await gaps(asyncio.gather(*[ask(question) for question in questions]))


def measure(title: str, ask: Ask, questions: Sequence[str], rounds: int) -> dict[str, float]:
    """Run, print a table, and return its numbers."""
    asyncio.run(timed(ask, questions, together=True))  # warm up
    rows = [
        [asyncio.run(timed(ask, questions, together=together)) for together in (False, True)] for _ in range(rounds)
    ]
    pauses = [asyncio.run(gaps_while_asking(ask, questions)) for _ in range(rounds)]
    idle = asyncio.run(gaps(asyncio.sleep(sum(map(sum, pauses)) / rounds)))
    ticks = sorted(gap for own in pauses for gap in own)
    serial, together = (statistics.median(column) for column in zip(*rows, strict=True))
    result = {
        "serial_s": serial,
        "together_s": together,
        "ratio": statistics.median(b / a for a, b in rows),
        "num_ticks": len(ticks),
        "p99_gap_ms": ticks[int(0.99 * len(ticks))] * 1000,
        "median_longest_gap_ms": statistics.median(max(own) for own in pauses) * 1000,
        "longest_gap_ms": ticks[-1] * 1000,
        "longest_gap_of_idle_loop_ms": max(idle) * 1000,
    }
    table = Table("", "measured", title=title)
    for name, value in result.items():
        table.add_row(name, f"{value:.3g}")
    Console().print(table)
    return result


@app.command()
def langchain(rounds: Rounds = 5, max_tokens: MaxTokens = 64) -> None:
    """`EFTChatModel`: 8 `ainvoke` calls together, and `batch`, against one after another."""
    with make_engine() as engine:
        llm = EFTChatModel(engine=engine, temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        result = measure(f"8 ainvoke calls, {max_tokens} tokens each", llm.ainvoke, QUESTIONS, rounds)
        ratios = []
        for _ in range(rounds):
            started = time.perf_counter()
            for question in QUESTIONS:
                llm.invoke(question)
            middle = time.perf_counter()
            llm.batch([*QUESTIONS], RunnableConfig(max_concurrency=len(QUESTIONS)))
            ratios.append((time.perf_counter() - middle) / (middle - started))
    Console().print(f"batch of 8: {statistics.median(ratios):.2f}x the time of 8 calls one after another")
    finish(
        "langchain", {**result, "batch_ratio": statistics.median(ratios), "rounds": rounds, "max_tokens": max_tokens}
    )


@app.command()
def llama_index(rounds: Rounds = 5, max_tokens: MaxTokens = 64) -> None:
    """`EFTLLM`: 4 `achat` calls together against one after another."""
    with make_engine() as engine:
        llm = EFTLLM(engine=engine, temperature=0.0, max_tokens=max_tokens, ignore_eos=True)

        async def ask(question: str) -> object:
            return await llm.achat([ChatMessage(role="user", content=question)])

        result = measure(f"4 achat calls, {max_tokens} tokens each", ask, QUESTIONS[:4], rounds)
    finish("llama_index", {**result, "rounds": rounds, "max_tokens": max_tokens})


if __name__ == "__main__":
    app()
