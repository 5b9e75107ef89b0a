"""Drafting as it pays against fixed numbers of drafts, and against the base alone, on a trio of real models.

    python -m benchmarks.auto_drafts --base qwen15.gguf --reference qwen05.gguf --adapter form_adapter --threads 2
    python -m benchmarks.auto_drafts ... --runtime llama.cpp --batch 1 --batch 4 --workload chat --workload rag

Conversations are those of `benchmarks/texts.py` (an agent's is its last turn). Prompts are read before and stay warm, so that a
time is that of answers; a round asks every run in turn, and a ratio is the median of the rounds' own. "best fixed" is the one with
the most tokens per second over all rounds, chosen after the fact; none at all and prompt lookup are among them. In torch the
members are dequantised to bfloat16, and costs are learnt while requests run: the first round is not reported. Nothing is drafted
from earlier texts of the engine (`draft_history_tokens=0`): every run asks for the same ones.
`benchmarks/form_adapter.py` trains the adapter, `benchmarks.real_trio fetch` brings the files.
"""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.drafts import NO_DRAFTS, fixed_drafts
from benchmarks.report import finish
from benchmarks.rounds import medians_of_ratios, run_engine
from benchmarks.texts import WORKLOADS
from eft_engine import Engine, EngineConfig, SpeculationOptions, TunedPair
from eft_engine.config import LlamaCppOptions

NUM_WARM_UP = 1
"""Rounds that are not reported."""


def main(
    base: Annotated[Path, typer.Option(help="The large model, a GGUF file.")],
    reference: Annotated[Path, typer.Option(help="The small model, a GGUF file.")],
    adapter: Annotated[Path, typer.Option(help="LoRA adapter on the reference, a folder.")],
    runtime: Annotated[str, typer.Option(help="torch (kernels for a CPU in it) or llama.cpp.")] = "torch",
    kernels: Annotated[bool, typer.Option(help="In torch: let the kernels for a CPU compute.")] = True,
    threads: Annotated[int, typer.Option(help="Threads of either.")] = 2,
    weight: Annotated[float, typer.Option(help="Of the pair.")] = 1.0,
    workload: Annotated[list[str], typer.Option(help=f"{', '.join(WORKLOADS)}; several times.")] = list(WORKLOADS),  # noqa: B006
    batch: Annotated[list[int], typer.Option(help="Requests together; several times.")] = [1],  # noqa: B006
    drafts: Annotated[list[int], typer.Option(help="Fixed numbers; several times.")] = [0, 2, 4, 6],  # noqa: B006
    num_prompts: Annotated[int, typer.Option(help="Prompts of a workload, at least as many as are together.")] = 3,
    draft_quantization: Annotated[str | None, typer.Option(help="See EngineConfig; [None]")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 32,
    rounds: Annotated[int, typer.Option(help="Repetitions; medians are reported.")] = 3,
) -> None:
    """Run and print; the last line is JSON."""
    torch.set_num_threads(threads)
    config = EngineConfig.model_validate(
        {
            "runtime": runtime,
            "cpu_kernels": kernels,
            "dtype": "bfloat16" if runtime == "torch" else "auto",
            "llama_cpp": LlamaCppOptions(n_threads=threads),
            "max_num_seqs": max(batch),
            "max_warm_prefixes": 2 * max(*batch, num_prompts),
            "draft_history_tokens": 0,
            "draft_quantization": draft_quantization,
        }
    )
    runs = {f"{number} drafts": (weight, fixed_drafts(number) if number else NO_DRAFTS) for number in drafts}
    runs["prompt lookup"] = (weight, SpeculationOptions(drafter="prompt_lookup"))
    runs["auto"] = (weight, SpeculationOptions())
    runs["base alone"] = (0.0, NO_DRAFTS)
    results: dict[str, Any] = {}
    with Engine.load(str(base), pairs={"form": TunedPair(str(adapter), str(reference))}, config=config) as engine:
        for name, size in itertools.product(workload, batch):
            prompts = [WORKLOADS[name](index)[-1] for index in range(max(num_prompts, size))]
            groups = [prompts[start : start + size] for start in range(0, len(prompts) - size + 1, size)]
            results[f"{name}, {size}"] = _measure(engine, f"{name}, {size} together", groups, runs, max_tokens, rounds)
        computed_by = sorted({type(network).__name__ for network in engine._trio.networks})
    finish(
        "auto_drafts",
        {
            "base": base.name,
            "runtime": runtime,
            "networks": computed_by,
            "threads": threads,
            "weight": weight,
            "draft_quantization": draft_quantization,
            "max_tokens": max_tokens,
            "rounds": rounds,
            "results": results,
        },
    )


def _measure(
    engine: Engine,
    title: str,
    groups: list[list[list[dict[str, str]]]],
    runs: dict[str, tuple[float, SpeculationOptions]],
    max_tokens: int,
    rounds: int,
) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    accepted: dict[str, tuple[int, int]] = {}
    for turn in range(NUM_WARM_UP + rounds):
        for name, (weight, speculation) in runs.items():
            before, seconds = engine.stats(), 0.0
            for prompts in groups:
                seconds += run_engine(engine, prompts, max_tokens=max_tokens, weight=weight, speculation=speculation)[1]
            after = engine.stats()
            accepted[name] = (after.num_accepted - before.num_accepted, after.num_drafted - before.num_drafted)
            if turn >= NUM_WARM_UP:
                times[name].append(seconds)
            Console(stderr=True).print(f"{title}, round {turn + 1}, {name}: {seconds:.2f} s, {accepted[name]} accepted")
    num_tokens = max_tokens * sum(map(len, groups))
    speeds = {name: num_tokens / statistics.median(own) for name, own in times.items()}
    best = max((name for name in runs if name not in ("auto", "base alone")), key=speeds.__getitem__)
    against_best = medians_of_ratios(times, best, "auto")
    table = Table(title=f"{title}: {max_tokens} tokens, auto is {against_best:.2f} of {best}")
    for heading in ("run", "tokens/s", "x base alone", "accepted", "drafted"):
        table.add_column(heading, justify="right")
    for name, speed in speeds.items():
        ratio = medians_of_ratios(times, "base alone", name)
        table.add_row(name, f"{speed:.1f}", f"{ratio:.2f}", *map(str, accepted[name]))
    Console().print(table)
    return {
        "best_fixed": best,
        "auto_against_best_fixed": against_best,
        "auto_against_base_alone": medians_of_ratios(times, "base alone", "auto"),
        "tokens_per_s": speeds,
        "accepted_and_drafted": accepted,
    }


if __name__ == "__main__":
    typer.run(main)
