"""A trio of GGUF files on llama.cpp, against what people write by hand over llama-cpp-python, and against torch.

    python -m benchmarks.gguf_trio decode --base qwen15.gguf --reference qwen05.gguf --adapter form_adapter --threads 2

    ready        from the start of a process to the first token, and the memory of loading and twelve questions
    decode       tokens per second after the first token, the base alone and weight 1
    texts        token ids of the engine against the hand-written loop's, and how near a tie they part
    batch        eight requests together against the same eight in turn
    prompt       2,000 tokens to the first token
    cost         milliseconds of one pass of 1 to 16 tokens in each network
    requantise   another file of the same model: Q8_0 from Q4_K_M

The adapter is a folder as peft writes it (`benchmarks/form_adapter.py` trains one); llama-cpp-python reads the GGUF file beside
it (form_adapter.gguf), which is written when it is missing.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import llama_cpp
import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from benchmarks.drafts import NO_DRAFTS, fixed_drafts
from benchmarks.peers.llama_cpp_python import LlamaCppPython
from benchmarks.peers.llama_cpp_trio import LlamaCppTrio
from benchmarks.report import finish
from benchmarks.rounds import CpuTime, clock, count_cpu_time, measure, median_seconds, medians_of_ratios, show
from benchmarks.texts import rag
from eft_engine import Engine, EngineConfig, SamplingParams, SpeculationOptions, TunedPair
from eft_engine.config import LlamaCppOptions, Runtime
from eft_engine.models.gguf_file import read_gguf
from eft_engine.models.llama_cpp.adapter_file import write_gguf_adapter
from eft_engine.models.llama_cpp.library import library

QUESTIONS = [
    "Write a Python function that returns the n-th Fibonacci number.",
    "How do I reverse a list in Python without changing the original?",
    "What does the HTTP status code 404 mean?",
    "Explain the difference between a process and a thread.",
    "Write an SQL query that counts the orders of each customer.",
    "Why is the sky blue?",
    "What is the capital of Australia, and why is it not Sydney?",
    "How does a hash table find a value?",
    "Write a shell command that finds all files larger than 100 MB.",
    "What is the use of a unit test?",
    "Why does bread rise?",
    "What does git rebase do?",
]
SIZES = (1, 2, 3, 4, 5, 8, 16)
"""Tokens of a pass."""
AS_IT_PAYS = SpeculationOptions()

app = typer.Typer(add_completion=False, help=__doc__)
Base = Annotated[Path, typer.Option(help="The large model, a GGUF file.")]
Reference = Annotated[Path, typer.Option(help="The small model, a GGUF file.")]
Adapter = Annotated[Path, typer.Option(help="LoRA adapter on the reference, a folder.")]
Threads = Annotated[int, typer.Option(help="Threads of everything that is measured.")]
Rounds = Annotated[int, typer.Option(help="Repetitions; medians are reported.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens per answer.")]
WithTorch = Annotated[bool, typer.Option("--torch", help="The engine in torch, too.")]


@app.callback()
def quiet() -> None:
    """Let llama.cpp log through Python's logging, for the peers too."""
    library()


@dataclass(frozen=True)
class Prompt:
    """A question as the engine takes it, and as everybody else does."""

    messages: list[dict[str, str]]
    ids: list[int]


@dataclass(frozen=True)
class Answer:
    """Token ids, seconds to the first token, and seconds for the others."""

    ids: list[int]
    first_s: float
    rest_s: float


Run = Callable[[Prompt], Answer]


def rendered(reference: Path, conversations: Sequence[list[dict[str, str]]]) -> list[Prompt]:
    """Conversations through the reference's chat template, which is the engine's choice as well."""
    tokenizer = AutoTokenizer.from_pretrained(reference.parent, gguf_file=reference.name)
    prompts = []
    for messages in conversations:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompts.append(Prompt(messages, list(tokenizer(text, add_special_tokens=False)["input_ids"])))
    return prompts


def questions(reference: Path) -> list[Prompt]:
    """The twelve."""
    return rendered(reference, [[{"role": "user", "content": question}] for question in QUESTIONS])


def gguf_adapter(adapter: Path, reference: Path) -> Path:
    """The GGUF file beside the folder."""
    file = adapter.with_suffix(".gguf")
    if not file.exists():
        write_gguf_adapter(adapter, file, model=read_gguf(reference, member="reference"), member="tuned")
    return file


def share_cores(threads: int, *, cpu_time: bool = False) -> None:
    """As many threads for torch as for llama.cpp, and the clock that was asked for."""
    torch.set_num_threads(threads)
    if cpu_time:
        count_cpu_time()


def load_engine(base: Path, reference: Path, adapter: Path, *, threads: int, runtime: Runtime = "llama.cpp") -> Engine:
    """Ours, reading every prompt from its start, as the others do."""
    config = EngineConfig(runtime=runtime, llama_cpp=LlamaCppOptions(n_threads=threads), max_warm_prefixes=0)
    return Engine.load(str(base), pairs={"form": TunedPair(str(adapter), str(reference))}, config=config)


def by_engine(engine: Engine, *, weight: float, speculation: SpeculationOptions, max_tokens: int) -> Run:
    """Greedy answers of the engine."""
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)

    def run(prompt: Prompt) -> Answer:
        started = clock()
        deltas = engine.stream(prompt.messages, sampling=sampling, reward_weights=weight, speculation=speculation)
        pieces = [next(deltas)]
        first_at = clock()
        pieces.extend(deltas)
        ended = clock()
        output = pieces[-1].output
        if output is None or output.usage.prompt_tokens != len(prompt.ids):
            raise RuntimeError(f"the engine's prompt is not that of the others, {len(prompt.ids)} tokens: {output}")
        return Answer(list(output.token_ids), first_at - started, ended - first_at)

    return run


def by_loop(loop: Callable[[list[int]], Iterator[int]], *, max_tokens: int) -> Run:
    """Greedy answers of something that gives token after token."""

    def run(prompt: Prompt) -> Answer:
        started = clock()
        tokens = loop(prompt.ids)
        first = next(tokens)
        first_at = clock()
        rest = list(islice(tokens, max_tokens - 1))
        return Answer([first, *rest], first_at - started, clock() - first_at)

    return run


@app.command()
def ready(
    base: Base,
    reference: Reference,
    adapter: Adapter,
    threads: Threads = 2,
    rounds: Rounds = 3,
    max_tokens: MaxTokens = 64,
    with_torch: WithTorch = False,
) -> None:
    """Every start is a process of its own; the files are in the page cache from an unreported first round."""
    prompts = [[question, prompt.ids] for question, prompt in zip(QUESTIONS, questions(reference), strict=True)]
    kinds = {
        "hand": gguf_adapter(adapter, reference),
        "llama.cpp": adapter,
        **({"torch": adapter} if with_torch else {}),
    }
    rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(prompts, file)
        file.flush()
        options = {"base": str(base), "reference": str(reference), "threads": threads, "prompts": file.name}
        for index in range(rounds + 1):
            for kind, its_adapter in kinds.items():
                given = json.dumps({**options, "adapter": str(its_adapter), "max_tokens": max_tokens if index else 1})
                started = time.time()
                command = [sys.executable, "-m", "benchmarks.peers.ready", kind, given]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"{kind} ended with {done.returncode}: {done.stderr[-2000:]}")
                row = json.loads(done.stdout)
                row |= {f"{name}_s": row.pop(name) - started for name in ("loaded", "first_token")}
                Console(stderr=True).print(f"round {index} {kind}: {row}")
                if index:
                    rows[kind].append(row)
    result = {k: {name: statistics.median(r[name] for r in own) for name in own[0]} for k, own in rows.items()}
    table = Table(title=f"a process, {threads} threads, {len(prompts)} questions of {max_tokens} tokens at weight 1")
    for heading in ("run", "loaded after, s", "first token after, s", "most memory, MB", "of it private, MB"):
        table.add_column(heading, justify="right")
    for kind, row in result.items():
        values = (row[name] for name in ("loaded_s", "first_token_s", "peak_mb", "private_mb"))
        table.add_row(kind, *(f"{value:.1f}" for value in values))
    Console().print(table)
    finish("gguf_trio_ready", {"base": base.name, "n_threads": threads, "rounds": rounds, **result})


@app.command()
def decode(
    base: Base,
    reference: Reference,
    adapter: Adapter,
    threads: Threads = 2,
    rounds: Rounds = 3,
    max_tokens: MaxTokens = 64,
    num_questions: Annotated[int, typer.Option(help="The first ones only.")] = 12,
    with_torch: WithTorch = False,
    cpu_time: CpuTime = False,
) -> None:
    """Greedy, one question at a time; all runs answer a question before the next one is asked."""
    share_cores(threads, cpu_time=cpu_time)
    prompts = questions(reference)[:num_questions]
    trio = LlamaCppTrio(base, reference, gguf_adapter(adapter, reference), threads=threads)
    theirs = LlamaCppPython(base, threads=threads)
    engine = load_engine(base, reference, adapter, threads=threads)

    def ours(weight: float, speculation: SpeculationOptions, own: Engine = engine) -> Run:
        return by_engine(own, weight=weight, speculation=speculation, max_tokens=max_tokens)

    runs: dict[str, Run] = {
        "base alone, llama-cpp-python": by_loop(theirs.plain, max_tokens=max_tokens),
        "base alone, by hand": by_loop(trio.plain, max_tokens=max_tokens),
        "base alone, engine": ours(0.0, NO_DRAFTS),
        "weight 1, by hand": by_loop(lambda ids: trio.composed(ids, weight=1.0), max_tokens=max_tokens),
        "weight 1, by hand, 4 drafts": by_loop(
            lambda ids: trio.drafted(ids, weight=1.0, num_drafts=4), max_tokens=max_tokens
        ),
        "weight 1, engine, no drafts": ours(1.0, NO_DRAFTS),
        "weight 1, engine": ours(1.0, AS_IT_PAYS),
        "weight 1, engine, 4 drafts": ours(1.0, fixed_drafts(4)),
    }
    if with_torch:
        in_torch = load_engine(base, reference, adapter, threads=threads, runtime="torch")
        runs["base alone, engine in torch"] = ours(0.0, NO_DRAFTS, in_torch)
        runs["weight 1, engine in torch"] = ours(1.0, AS_IT_PAYS, in_torch)
    times: dict[str, list[float]] = {name: [0.0] * rounds for name in runs}
    for name, run in runs.items():
        run(prompts[0])
        Console(stderr=True).print(f"warm: {name}")
    accepted_before = engine.stats().num_accepted, engine.stats().num_drafted
    for index in range(rounds):
        for prompt in prompts:
            for name, run in runs.items():
                times[name][index] += run(prompt).rest_s
        speeds = {name: round(len(prompts) * (max_tokens - 1) / own[index], 1) for name, own in times.items()}
        Console(stderr=True).print(f"round {index + 1}: {speeds}")
    title = f"{len(prompts)} questions of {max_tokens} tokens, {threads} threads, after the first token"
    result = show(title, times, len(prompts) * (max_tokens - 1), "weight 1, by hand")
    compared = {
        "base alone, engine / llama-cpp-python": ("base alone, llama-cpp-python", "base alone, engine"),
        "weight 1, engine / by hand": ("weight 1, by hand", "weight 1, engine"),
        "weight 1, engine / by hand, 4 drafts": ("weight 1, by hand, 4 drafts", "weight 1, engine"),
        "engine, weight 1 / base alone": ("base alone, engine", "weight 1, engine"),
    }
    if with_torch:
        compared["weight 1, engine / in torch"] = ("weight 1, engine in torch", "weight 1, engine")
    ratios = {name: medians_of_ratios(times, slow, fast) for name, (slow, fast) in compared.items()}
    for name, ratio in ratios.items():
        Console().print(f"{name}: {ratio:.2f}")
    accepted, drafted = (
        now - before
        for now, before in zip((engine.stats().num_accepted, engine.stats().num_drafted), accepted_before, strict=True)
    )
    finish(
        "gguf_trio_decode",
        {
            "base": base.name,
            "n_threads": threads,
            "rounds": rounds,
            "cpu_time": cpu_time,
            "runs": result,
            "ratios": ratios,
            "engine_drafts": {"drafted": drafted, "accepted": accepted},
        },
    )


@app.command()
def texts(base: Base, reference: Reference, adapter: Adapter, threads: Threads = 2, max_tokens: MaxTokens = 64) -> None:
    """Against the hand-written loop without drafts; the margins are its log-probabilities where a text leaves it.

    Blocks of other sizes go through other kernels, so texts part at near ties; the loop's own drafts show how often.
    """
    share_cores(threads)
    trio = LlamaCppTrio(base, reference, gguf_adapter(adapter, reference), threads=threads)
    engine = load_engine(base, reference, adapter, threads=threads)
    runs: dict[str, Run] = {
        "by hand, 4 drafts": by_loop(lambda ids: trio.drafted(ids, weight=1.0, num_drafts=4), max_tokens=max_tokens),
        "engine, no drafts": by_engine(engine, weight=1.0, speculation=NO_DRAFTS, max_tokens=max_tokens),
        "engine": by_engine(engine, weight=1.0, speculation=AS_IT_PAYS, max_tokens=max_tokens),
    }
    plain = by_loop(lambda ids: trio.composed(ids, weight=1.0), max_tokens=max_tokens)
    partings: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for question, prompt in zip(QUESTIONS, questions(reference), strict=True):
        expected = plain(prompt).ids
        for name, run in runs.items():
            ids = run(prompt).ids
            if ids != expected:
                partings[name].append({"question": question, **parting(trio, engine, prompt, expected, ids)})
    table = Table(title=f"{max_tokens} tokens at weight 1 that leave the hand-written loop's, {threads} threads")
    for heading in ("run", "question", "equal tokens", "run goes on", "loop goes on", "margin of the loop's"):
        table.add_column(heading)
    for name, rows in partings.items():
        for row in rows:
            margin = f"{row['margin']:.3f}"
            table.add_row(name, row["question"][:24], str(row["equal"]), repr(row["run"]), repr(row["loop"]), margin)
    Console().print(table)
    result = {
        name: {
            "same_texts": len(QUESTIONS) - len(rows),
            "largest_margin": max((row["margin"] for row in rows), default=0.0),
            "partings": rows,
        }
        for name, rows in partings.items()
    }
    finish("gguf_trio_texts", {"base": base.name, "n_threads": threads, "num_texts": len(QUESTIONS), **result})


def parting(
    trio: LlamaCppTrio, engine: Engine, prompt: Prompt, expected: Sequence[int], ids: Sequence[int]
) -> dict[str, Any]:
    """Where a text leaves `expected`, both tokens there, and by how much the loop prefers its own."""
    equal = next(index for index, (own, its) in enumerate(zip(ids, expected, strict=True)) if own != its)
    rows = trio.start(prompt.ids)
    for token in expected[:equal]:
        rows = trio.read([token])
    composed = (rows[0] + rows[1] - rows[2])[0]
    run, loop = (engine.tokenizer.decode([text[equal]], skip_special_tokens=False) for text in (ids, expected))
    margin = float(composed[expected[equal]] - composed[ids[equal]])
    return {"equal": equal, "run": run, "loop": loop, "margin": margin}


@app.command()
def batch(
    base: Base,
    reference: Reference,
    adapter: Adapter,
    threads: Threads = 2,
    rounds: Rounds = 3,
    max_tokens: MaxTokens = 64,
    with_torch: WithTorch = False,
    cpu_time: CpuTime = False,
) -> None:
    """Weight 1; seconds of whole calls, prompts included."""
    share_cores(threads, cpu_time=cpu_time)
    conversations = [prompt.messages for prompt in questions(reference)[:8]]
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)

    def seconds(engine: Engine, *, together: bool, speculation: SpeculationOptions) -> float:
        started = clock()
        for prompts in [conversations] if together else [[one] for one in conversations]:
            engine.generate(prompts, sampling=sampling, reward_weights=1.0, speculation=speculation)
        return clock() - started

    runs: dict[str, Callable[[], float]] = {}
    for runtime in ("llama.cpp", "torch") if with_torch else ("llama.cpp",):
        engine = load_engine(base, reference, adapter, threads=threads, runtime=runtime)
        for how, speculation in {"": AS_IT_PAYS, ", no drafts": NO_DRAFTS}.items():
            for together in (False, True):
                name = f"{runtime}, {'together' if together else 'in turn'}{how}"
                runs[name] = partial(seconds, engine, together=together, speculation=speculation)
    times = measure(runs, rounds)
    title = f"8 requests of {max_tokens} tokens, weight 1, {threads} threads"
    result = show(title, times, 8 * max_tokens, "llama.cpp, in turn")
    finish(
        "gguf_trio_batch", {"base": base.name, "n_threads": threads, "rounds": rounds, "cpu_time": cpu_time, **result}
    )


@app.command()
def prompt(
    base: Base,
    reference: Reference,
    adapter: Adapter,
    threads: Threads = 2,
    rounds: Rounds = 3,
    num_tokens: Annotated[int, typer.Option(help="Length of the prompt, roughly.")] = 2000,
    with_torch: WithTorch = False,
    cpu_time: CpuTime = False,
) -> None:
    """Seconds until the first token of an answer about several documents."""
    share_cores(threads, cpu_time=cpu_time)
    document = rag(0)[0][0]["content"]
    count = max(1, round(num_tokens / len(rendered(reference, rag(0))[0].ids)))
    text = "\n\n".join([document, *(rag(index)[0][0]["content"] for index in range(1, count))])
    (long,) = rendered(reference, [[{"role": "user", "content": text}]])
    trio = LlamaCppTrio(base, reference, gguf_adapter(adapter, reference), threads=threads)
    runs: dict[str, Run] = {
        "base alone, llama-cpp-python": by_loop(LlamaCppPython(base, threads=threads).plain, max_tokens=1),
        "base alone, by hand": by_loop(trio.plain, max_tokens=1),
        "weight 1, by hand": by_loop(lambda ids: trio.composed(ids, weight=1.0), max_tokens=1),
    }
    for runtime in ("llama.cpp", "torch") if with_torch else ("llama.cpp",):
        engine = load_engine(base, reference, adapter, threads=threads, runtime=runtime)
        for name, weight in {"base alone": 0.0, "weight 1": 1.0}.items():
            runs[f"{name}, engine on {runtime}"] = by_engine(engine, weight=weight, speculation=NO_DRAFTS, max_tokens=1)

    def seconds(run: Run) -> float:
        return run(long).first_s

    times = measure({name: partial(seconds, run) for name, run in runs.items()}, rounds)
    title = f"a prompt of {len(long.ids)} tokens to the first token, {threads} threads"
    result = show(title, times, len(long.ids), "weight 1, by hand")
    finish(
        "gguf_trio_prompt",
        {
            "base": base.name,
            "n_threads": threads,
            "rounds": rounds,
            "cpu_time": cpu_time,
            "num_tokens": len(long.ids),
            **result,
        },
    )


@app.command()
def cost(base: Base, reference: Reference, adapter: Adapter, max_threads: Threads = 2, repetitions: Rounds = 9) -> None:
    """Straight through llama_decode, after 64 tokens of text; all tokens of a pass give a row."""
    trio = LlamaCppTrio(base, reference, gguf_adapter(adapter, reference), threads=max_threads)
    text = [token for prompt in questions(reference) for token in prompt.ids]
    trio.start(text[:64])
    networks = {"base": trio.base, "reference": trio.reference, "tuned": trio.tuned}
    table = Table(title="milliseconds of a pass")
    for heading in ("network", "threads", *map(str, SIZES)):
        table.add_column(heading, justify="right")
    result: dict[str, dict[int, list[float]]] = {}
    for name, context in networks.items():
        result[name] = {}
        for threads in range(1, max_threads + 1):
            llama_cpp.llama_set_n_threads(context.handle, threads, threads)

            def one_pass(size: int, context: Any = context) -> None:
                context.decode(text[64 : 64 + size], all_rows=True)
                context.take_back(64)

            own = [1e3 * median_seconds(partial(one_pass, size), repetitions) for size in SIZES]
            table.add_row(name, str(threads), *(f"{value:.1f}" for value in own))
            result[name][threads] = own
    Console().print(table)
    finish("gguf_trio_cost", {"base": base.name, "reference": reference.name, "sizes": SIZES, "ms": result})


@app.command()
def requantise(
    source: Annotated[Path, typer.Option(help="A GGUF file.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    kind: Annotated[str, typer.Option("--type", help="Q8_0, Q4_0, Q5_K_M, ...")] = "Q8_0",
    threads: Threads = 2,
) -> None:
    """A file of one type from a file of another: for speed, as what the first lost stays lost."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread, params.allow_requantize = threads, True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), params):
        raise RuntimeError(f"llama.cpp could not write {out} from {source}")
    finish("gguf_trio_requantise", {"type": kind, "bytes_before": source.stat().st_size, "bytes": out.stat().st_size})


if __name__ == "__main__":
    app()
