"""`eft bench`: how fast a trio is on this machine, by batch size and drafter."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.bar import Bar
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from eft_engine.cli import trio_options as options
from eft_engine.config import SamplingParams, SpeculationOptions
from eft_engine.errors import InvalidOptionError
from eft_engine.outputs import RequestOutput

DRAFTERS = ("none", "prompt_lookup", "tuned", "auto")
PASSAGE = (
    "The old mill stood where the river bent around the hill. In spring the water rose and turned both wheels, and people came "
    "from three villages with their grain. The miller kept a book in which he wrote the weight of every sack, the weather, and "
    "the names of those who could not pay until autumn. When the railway came, the sacks went to the town by train, and one "
    "wheel stopped. Today a family of otters lives below the weir, and the book is in the school, where children copy its pages. "
)


@dataclass(frozen=True)
class BenchResult:
    """Medians over the repetitions of one batch size and drafter. Times in seconds."""

    batch_size: int
    drafter: str
    tokens_per_s: float
    """Of all requests together, prompts included."""
    ttft_s: float
    tpot_s: float
    acceptance_rate: float
    mean_acceptance_length: float


@options.takes_trio
def bench(
    choice: options.TrioChoice,
    weight: options.Weight = None,
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Requests together; repeat. [1 and 4]")] = None,
    drafter: Annotated[list[str] | None, typer.Option(help=f"{', '.join(DRAFTERS)}; repeat for several. [all]")] = None,
    prompt_tokens: Annotated[int, typer.Option(min=8, help="Length of every prompt.")] = 128,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens generated for every prompt.")] = 48,
    repeat: Annotated[int, typer.Option(min=1, help="Timed repetitions; medians are shown.")] = 3,
    plot: Annotated[Path | None, typer.Option(help="Also draw a figure (.png, .svg, .pdf); needs matplotlib.")] = None,
    as_json: options.Json = False,
) -> None:
    """Measure a trio: tokens per second, time to first token and acceptance; the last line is JSON."""
    drafters, sizes = drafter or list(DRAFTERS), batch_size or [1, 4]
    _check_drafters(drafters)
    if plot is not None:
        _import_pyplot()
    config = choice.config.model_copy(update={"max_warm_prefixes": 0, "max_num_seqs": max(sizes)})
    weights = options.parse_weights(weight)
    with options.load_engine(options.TrioChoice(choice.base, choice.pairs, config)) as engine:
        results = measure(
            engine,
            sizes,
            drafters,
            weights=weights,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            repeat=repeat,
        )
        conditions = _conditions(engine, weights, prompt_tokens=prompt_tokens, max_tokens=max_tokens, repeat=repeat)
    if not as_json:
        options.console().print(_table(results))
    if plot is not None:
        draw(results, plot)
    options.print_json({"results": results, "conditions": conditions})


def measure(
    engine: Any,
    sizes: Sequence[int],
    drafters: Sequence[str],
    *,
    weights: Any,
    prompt_tokens: int,
    max_tokens: int,
    repeat: int,
) -> list[BenchResult]:
    """Run every batch size with every drafter, all of them in turn in every repetition; a first, unreported one warms up."""
    cases = [(size, drafter) for size in sizes for drafter in drafters]
    runs: dict[tuple[int, str], list[tuple[list[RequestOutput], float]]] = {case: [] for case in cases}
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    prompts = make_prompts(engine.tokenizer, max(sizes), prompt_tokens)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("warming up", total=len(cases) * (repeat + 1))
        for repetition in range(repeat + 1):
            for size, drafter in cases:
                speculation = SpeculationOptions.model_validate({"drafter": drafter})
                started = time.perf_counter()
                outputs = engine.generate(
                    prompts[:size], sampling=sampling, reward_weights=weights, speculation=speculation
                )
                if repetition:
                    runs[size, drafter].append((outputs, time.perf_counter() - started))
                progress.update(task, advance=1, description=f"{size} together, drafter {drafter}")
    return [summarise(size, drafter, runs[size, drafter]) for size, drafter in cases]


def make_prompts(tokenizer: Any, count: int, prompt_tokens: int) -> list[str]:
    """`count` prompts of about `prompt_tokens` tokens, none the beginning of another."""
    prompts = []
    for index in range(count):
        text = f"{index + 1}. "
        while len(token_ids := tokenizer.encode(text, add_special_tokens=False)) < prompt_tokens:
            text += PASSAGE
        prompts.append(tokenizer.decode(token_ids[:prompt_tokens]))
    return prompts


def summarise(size: int, drafter: str, runs: Sequence[tuple[Sequence[RequestOutput], float]]) -> BenchResult:
    """Medians of the repetitions; `runs` are the outputs and seconds of each."""
    outputs = [output for own, _ in runs for output in own]
    metrics = [output.metrics for output in outputs]
    drafted, accepted, steps = (
        sum(getattr(metric, name) for metric in metrics) for name in ("num_drafted", "num_accepted", "num_steps")
    )
    return BenchResult(
        batch_size=size,
        drafter=drafter,
        tokens_per_s=statistics.median(
            sum(output.usage.completion_tokens for output in own) / seconds for own, seconds in runs
        ),
        ttft_s=statistics.median(metric.ttft_s for metric in metrics),
        tpot_s=statistics.median(metric.tpot_s for metric in metrics),
        acceptance_rate=accepted / drafted if drafted else 0.0,
        mean_acceptance_length=1.0 + accepted / steps,
    )


def draw(results: Sequence[BenchResult], path: Path) -> None:
    """Tokens per second over the batch size, one line per drafter."""
    figure, axes = _import_pyplot().subplots(figsize=(7, 4.5))
    for drafter in dict.fromkeys(result.drafter for result in results):
        own = sorted((result.batch_size, result.tokens_per_s) for result in results if result.drafter == drafter)
        axes.plot(*zip(*own, strict=True), marker="o", label=drafter)
    axes.set_xlabel("requests together")
    axes.set_ylabel("tokens per second")
    axes.set_ylim(bottom=0)
    axes.legend(title="drafter")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def _table(results: Sequence[BenchResult]) -> Table:
    table = Table(title="speed")
    for heading in ("together", "drafter", "tokens/s"):
        table.add_column(heading, justify="left" if heading == "drafter" else "right")
    table.add_column("", width=24)
    for heading in ("first token, ms", "per token, ms", "accepted", "tokens per step"):
        table.add_column(heading, justify="right")
    fastest = max(result.tokens_per_s for result in results)
    for result in results:
        table.add_row(
            str(result.batch_size),
            result.drafter,
            f"{result.tokens_per_s:.1f}",
            Bar(fastest, 0, result.tokens_per_s),
            f"{result.ttft_s * 1e3:.0f}",
            f"{result.tpot_s * 1e3:.1f}",
            f"{result.acceptance_rate:.0%}",
            f"{result.mean_acceptance_length:.2f}",
        )
    return table


def _check_drafters(drafters: Sequence[str]) -> None:
    for name in drafters:
        if name not in DRAFTERS:
            raise InvalidOptionError(
                f"--drafter must be one of {', '.join(DRAFTERS)}, got {name!r}", option="drafter", value=name
            )


def _conditions(engine: Any, weights: Any, **sizes: int) -> dict[str, Any]:
    return {
        **{library: importlib.metadata.version(library) for library in ("torch", "transformers")},
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "device": engine.config.device,
        "members": {
            member.name: {"source": member.source, "dtype": member.dtype, "runtime": member.runtime}
            for member in engine.report().members
        },
        "reward_weights": weights if weights is not None else engine.weights,
        **sizes,
    }


def _import_pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise InvalidOptionError(
            "--plot needs matplotlib; install it with: pip install 'eft-engine[plot]'", option="plot"
        ) from error
    return pyplot
