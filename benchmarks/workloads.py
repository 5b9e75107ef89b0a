"""The engine against its peers on chat, RAG and agent conversations, on the same weights in one run.

    python -m benchmarks.workloads                                             batches of 1 and 4, minutes
    python -m benchmarks.workloads --trio small-pair --workload chat           drafting by a small tuned model, acceptance imposed
    python -m benchmarks.workloads --batch 1 --batch 4 --batch 8 --batch 16 --batch 32 --rounds 3        everything, long

    naive loop          three transformers models with a cache each, composed token by token, prompts padded on the left
    base alone          transformers `generate` of the base
    assisted            transformers `generate` of the base with the tuned model drafting; refuses batches
    engine, <drafter>   this engine; `tuned` drafts by the tuned model, `auto` chooses

Trio `smollm2`: three SmolLM2-135M networks, the pair really tuned; a pair as large as its base cannot win by drafting. Trio
`small-pair`: the same base with an untrained pair of 6 layers x 256, and `tuned` drafts are right as often as `--acceptance`
says (they pay every forward pass). All requests of a batch are asked together; an agent's three turns follow one another, each
with the whole history, of which only the engine remembers what it has read.

"bandwidth" is the share of the memory-bandwidth limit that plain decoding steps reach: bytes that a step must read / measured
copy bandwidth / median seconds of a step. Float32 on a CPU becomes a matter of arithmetic as batches grow.

Every cell is printed as soon as it is measured, so a run that is stopped keeps what it has.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.bandwidth import copy_bandwidth, step_bytes
from benchmarks.imposed import impose, small_model
from benchmarks.naive import PeerRun, naive_batch, transformers_batch
from benchmarks.report import finish
from benchmarks.smollm2 import Dtype, SeparateTrio, separate_trio
from benchmarks.texts import WORKLOADS
from eft_engine import EngineConfig, SamplingParams, SpeculationOptions
from eft_engine.outputs import RequestOutput

DRAFTERS = ("none", "prompt_lookup", "tuned", "auto")
PEERS = ("naive loop", "base alone", "assisted", *(f"engine, {drafter}" for drafter in DRAFTERS))
TRIOS = ("smollm2", "small-pair")
WEIGHT = 0.5

Turns = list[list[list[int]]]
"""Prompts as token ids, by turn and request."""


@dataclass(frozen=True)
class Case:
    """One cell of the comparison."""

    trio: SeparateTrio
    turns: Turns
    max_tokens: int
    acceptance: float | None

    @property
    def models(self) -> tuple[Any, Any, Any]:
        """Base, tuned, reference."""
        return self.trio.base, self.trio.tuned, self.trio.reference

    @property
    def num_tokens(self) -> int:
        """Generated in all turns."""
        return self.max_tokens * sum(map(len, self.turns))


@dataclass(frozen=True)
class Measured:
    """Seconds of all turns, median seconds of a decode step (0: unknown), tokens per step."""

    seconds: float
    step_s: float
    tokens_per_step: float = 1.0


def run_peer(case: Case, run: Callable[[list[list[int]]], PeerRun]) -> Measured:
    """A peer that knows nothing of earlier turns."""
    runs = [run(prompts) for prompts in case.turns]
    return Measured(sum(own.seconds for own in runs), statistics.median(own.step_s for own in runs))


def run_engine(case: Case, drafter: str, right: dict[tuple[int, ...], list[int]]) -> Measured:
    """A new engine, so that nothing is warm but what its own turns have read; making it is not timed."""
    prompts = [[case.trio.tokenizer.decode(ids) for ids in turn] for turn in case.turns]
    sampling = SamplingParams(temperature=0.0, max_tokens=case.max_tokens, ignore_eos=True)
    speculation = SpeculationOptions.model_validate({"drafter": drafter})
    batch_size = len(prompts[0])
    config = EngineConfig(
        speculation=speculation, self_check=False, max_num_seqs=batch_size, max_warm_prefixes=6 * batch_size
    )
    with case.trio.engine(config) as engine:
        if case.acceptance is not None:
            impose(engine, right, case.acceptance)
        started = time.perf_counter()
        outputs: list[RequestOutput] = []
        for turn in prompts:
            outputs += engine.generate(turn, sampling=sampling, reward_weights=WEIGHT)
        seconds = time.perf_counter() - started
    steps = sum(output.metrics.num_steps for output in outputs)
    tokens_per_step = sum(output.usage.completion_tokens for output in outputs) / steps
    step_s = statistics.median(output.metrics.tpot_s for output in outputs) * tokens_per_step
    return Measured(seconds, step_s, tokens_per_step)


def make_runs(case: Case, peers: list[str]) -> dict[str, Callable[[], Measured]]:
    """What to run, by peer."""
    right: dict[tuple[int, ...], list[int]] = {}
    if case.acceptance is not None:
        for prompts in case.turns:
            run = naive_batch(case.models, prompts, weight=WEIGHT, max_tokens=case.max_tokens)
            right |= {tuple(ids): answer for ids, answer in zip(prompts, run.token_ids, strict=True)}

    def naive() -> Measured:
        return run_peer(case, lambda ids: naive_batch(case.models, ids, weight=WEIGHT, max_tokens=case.max_tokens))

    def alone(**options: Any) -> Measured:
        return run_peer(
            case, lambda ids: transformers_batch(case.trio.base, ids, max_tokens=case.max_tokens, **options)
        )

    runs: dict[str, Callable[[], Measured]] = {
        "naive loop": naive,
        "base alone": alone,
        "assisted": lambda: alone(assistant_model=case.trio.tuned),
    }
    for drafter in DRAFTERS:
        runs[f"engine, {drafter}"] = partial(run_engine, case, drafter, right)
    return {name: runs[name] for name in peers}


def measure_case(
    case: Case, peers: list[str], rounds: int, bandwidth: float, advance: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """All peers in turn in every round, `advance` told of each before it runs; a peer that refuses is reported with its reason."""
    measured: dict[str, list[Measured]] = {name: [] for name in peers}
    refused: dict[str, str] = {}
    runs = make_runs(case, peers)
    for _ in range(rounds):
        for name, run in runs.items():
            advance(name)
            if name not in refused:
                try:
                    measured[name].append(run())
                except ValueError as error:  # transformers' answer to batches it cannot speculate on
                    refused[name] = str(error).split(". ")[0]
    contexts = [[len(ids) + case.max_tokens // 2 for ids in turn] for turn in case.turns]
    result: dict[str, dict[str, Any]] = {}
    for name, own in measured.items():
        if name in refused:
            result[name] = {"refused": refused[name]}
            continue
        models = case.models if name != "base alone" else case.models[:1]
        step_s = statistics.median(run.step_s for run in own)
        floor_s = statistics.median(step_bytes(models, lens) for lens in contexts) / bandwidth
        plain = name in ("naive loop", "engine, none")
        result[name] = {
            "tokens_per_s": case.num_tokens / statistics.median(run.seconds for run in own),
            "tokens_per_step": statistics.median(run.tokens_per_step for run in own),
            "bandwidth_share": floor_s / step_s if plain and step_s else None,
        }
        for slow in ("naive loop", "base alone"):
            if slow in measured and slow not in refused:
                pairs = zip(measured[slow], own, strict=True)
                result[name][f"times {slow}"] = statistics.median(a.seconds / b.seconds for a, b in pairs)
    return result


def make_turns(tokenizer: Any, workload: str, batch_size: int) -> Turns:
    """Rendered prompts of a batch, by turn."""
    conversations = [WORKLOADS[workload](index) for index in range(batch_size)]
    return [
        [
            list(
                tokenizer(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)).input_ids
            )
            for messages in turn
        ]
        for turn in zip(*conversations, strict=True)
    ]


def make_table(title: str, results: dict[tuple[str, int], dict[str, dict[str, Any]]]) -> Table:
    """One line per workload, batch size and peer."""

    def text(own: dict[str, Any], key: str, pattern: str) -> str:
        return pattern.format(own[key]) if own.get(key) is not None else ""

    table = Table(title=title)
    for heading in ("workload", "together", "peer"):
        table.add_column(heading)
    for heading in ("tokens/s", "x naive loop", "x base alone", "tokens per step", "bandwidth"):
        table.add_column(heading, justify="right")
    for (workload, size), peers in results.items():
        for name, own in peers.items():
            if "refused" in own:
                table.add_row(workload, str(size), name, f"refuses: {own['refused']}")
                continue
            table.add_row(
                workload,
                str(size),
                name,
                text(own, "tokens_per_s", "{:.1f}"),
                text(own, "times naive loop", "{:.2f}"),
                text(own, "times base alone", "{:.2f}"),
                text(own, "tokens_per_step", "{:.2f}"),
                text(own, "bandwidth_share", "{:.0%}"),
            )
        table.add_section()
    return table


def checked(values: list[str] | None, known: tuple[str, ...], option: str) -> list[str]:
    """All known values by default; an unknown one ends the run."""
    for value in values or ():
        if value not in known:
            raise typer.BadParameter(f"{option} must be one of {', '.join(known)}, got {value!r}")
    return values or list(known)


def main(
    workload: Annotated[list[str] | None, typer.Option(help="chat, rag, agent; repeat for several. [all]")] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Requests together; repeat for several. [1 and 4]")
    ] = None,
    peer: Annotated[list[str] | None, typer.Option(help=f"{'; '.join(PEERS)}; repeat for several. [all]")] = None,
    trio: Annotated[str, typer.Option(help=" or ".join(TRIOS))] = "smollm2",
    acceptance: Annotated[
        float, typer.Option(min=0, max=1, help="Of `tuned` drafts of the small pair, imposed.")
    ] = 0.8,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens per request and turn.")] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; medians, and medians of ratios, are reported.")] = 1,
    dtype: Dtype = "float32",
) -> None:
    """Run and print; the last line is JSON."""
    (trio,) = checked([trio], TRIOS, "--trio")
    workloads = checked(workload, tuple(WORKLOADS), "--workload")
    peers = checked(peer, PEERS, "--peer")
    models = separate_trio(dtype)
    imposed = acceptance if trio == "small-pair" else None
    if imposed is not None:
        tuned, reference = (small_model(seed).to(getattr(torch, dtype)) for seed in (1, 2))
        models = SeparateTrio(models.base, tuned, reference, models.tokenizer)
    bandwidth = copy_bandwidth(torch.device("cpu"))
    note = f", acceptance {imposed:g} imposed" if imposed is not None else ""
    title = f"trio {trio}{note}, {dtype}, {max_tokens} tokens per turn, {rounds} rounds"
    results: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    cells = list(itertools.product(workloads, batch or [1, 4]))
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("measuring", total=len(cells) * len(peers) * rounds)
        for name, size in cells:
            case = Case(models, make_turns(models.tokenizer, name, size), max_tokens, imposed)
            prompts = (
                f"{name}, {size} together, prompts of {', '.join(str(len(turn[0])) for turn in case.turns)} tokens"
            )

            def advance(peer: str, prompts: str = prompts) -> None:
                progress.update(task, advance=1, description=f"{prompts}: {peer}")

            results[name, size] = measure_case(case, peers, rounds, bandwidth, advance)
            progress.console.print(make_table(prompts, {(name, size): results[name, size]}))
    Console().print(make_table(title, results))
    finish(
        "workloads",
        {
            "trio": trio,
            "imposed_acceptance": imposed,
            "dtype": dtype,
            "max_tokens": max_tokens,
            "rounds": rounds,
            "copy_bytes_per_s": bandwidth,
            "results": {f"{name}, {size}": peers for (name, size), peers in results.items()},
        },
    )


if __name__ == "__main__":
    typer.run(main)
