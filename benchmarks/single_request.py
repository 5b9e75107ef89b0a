"""The base alone on a CPU, from safetensors in the engine and from GGUF files of the same weights in llama.cpp.

    python -m benchmarks.single_request files                        SmolLM2-135M in bfloat16, BF16 and Q4_0, into --folder
    python -m benchmarks.single_request speed --threads 1            tokens per second at batch 1, 8 and 16
    python -m benchmarks.single_request passes --threads 2           one pass of 1 to 32 tokens in the kernels, wider network;
                                                                     beside it --small-pages, without large pages of memory

Needs llama-cpp-python (`make test-llama-cpp` makes an environment with it). A time is that of 65 tokens less that of one, so that
prompts do not count; rounds take turns, and ratios are medians of each round's.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Any

import llama_cpp
import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from benchmarks.peers.llama_cpp_parallel import LlamaCppParallel
from benchmarks.report import finish
from benchmarks.rounds import clock
from benchmarks.smollm2 import NO_DRAFTS, QUESTIONS, separate_trio
from eft_engine import Engine, EngineConfig, SamplingParams
from eft_engine.models.native.huge_pages import WeightMemory
from eft_engine.models.native.network import native_network
from eft_engine.models.network import Block
from eft_engine.zoo.presets import smollm2

NUM_TOKENS = 64
NUM_CACHED = 16
"""Positions before a pass that is timed."""
PEERS = {"bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
"""What of llama.cpp's stands beside which of our weights."""

app = typer.Typer(add_completion=False, help=__doc__)
Folder = Annotated[Path, typer.Option(help="Where the files are.")]


@app.command()
def files(folder: Folder = Path("build/single_request")) -> None:
    """Write the same weights as safetensors (bfloat16) and as GGUF files (BF16, Q8_0, Q4_0), with llama.cpp's own quantiser."""
    folder.mkdir(parents=True, exist_ok=True)
    trio = separate_trio("bfloat16")
    trio.base.save_pretrained(folder / "bfloat16")
    trio.tokenizer.save_pretrained(folder / "bfloat16")
    source = smollm2()
    wheel_file = Path(source.source) / str(source.gguf_file)
    kinds = {
        "BF16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
        "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
        "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    }
    for name, kind in kinds.items():
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = kind, True
        begin = wheel_file if name == "BF16" else folder / "BF16.gguf"
        if llama_cpp.llama_model_quantize(str(begin).encode(), str(folder / f"{name}.gguf").encode(), params):
            raise RuntimeError(f"llama.cpp could not write {name}.gguf")


@app.command()
def speed(
    folder: Folder = Path("build/single_request"),
    threads: Annotated[int, typer.Option(help="Threads of both.")] = 1,
    rounds: Annotated[int, typer.Option(help="Repetitions; medians are reported.")] = 5,
    weights: Annotated[list[str], typer.Option(help="bfloat16, int8 or int4; several times.")] = ["bfloat16", "int4"],  # noqa: B006
    batches: Annotated[list[int], typer.Option(help="Requests at once; several times.")] = [1, 8, 16],  # noqa: B006
) -> None:
    """Tokens per second of the engine and of llama.cpp."""
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder / "bfloat16")
    table = Table(title=f"SmolLM2-135M alone, {threads} thread(s)")
    for heading in ("weights", "batch", "engine, tokens/s", "llama.cpp, tokens/s", "engine / llama.cpp"):
        table.add_column(heading, justify="right")
    result: dict[str, Any] = {}
    for kind in weights:
        config = (
            EngineConfig(**dict(NO_DRAFTS))
            if kind == "bfloat16"
            else EngineConfig(**{**dict(NO_DRAFTS), "quantization": kind})
        )
        with Engine.load(str(folder / "bfloat16"), config=config) as engine:
            for batch in batches:
                texts = [QUESTIONS[index % len(QUESTIONS)] * 6 for index in range(batch)]
                prompts = [tokenizer(text)["input_ids"] for text in texts]
                peer = LlamaCppParallel(folder / f"{PEERS[kind]}.gguf", threads=threads, num_texts=batch)
                ours, theirs = [], []
                for turn in range(rounds + 1):  # the first warms up
                    own, other = _engine_speed(engine, texts), _peer_speed(peer, prompts)
                    if turn:
                        ours.append(own)
                        theirs.append(other)
                ratio = statistics.median([own / other for own, other in zip(ours, theirs, strict=True)])
                table.add_row(
                    kind,
                    str(batch),
                    f"{statistics.median(ours):.1f}",
                    f"{statistics.median(theirs):.1f}",
                    f"{ratio:.2f}",
                )
                result[f"{kind} batch {batch}"] = {
                    "engine": statistics.median(ours),
                    "llama_cpp": statistics.median(theirs),
                    "ratio": ratio,
                }
    Console().print(table)
    finish("single_request", {"threads": threads, "rounds": rounds, "results": result})


@app.command()
def passes(
    threads: Annotated[int, typer.Option(help="Threads of the kernels.")] = 1,
    num_layers: Annotated[int, typer.Option(help="Of a Qwen2 as wide as the 1.5B (which has 28), random weights.")] = 7,
    rounds: Annotated[int, typer.Option(help="Repetitions; the median is reported.")] = 7,
    weights: Annotated[list[str], typer.Option(help="bfloat16, int8 or int4; several times.")] = ["bfloat16", "int4"],  # noqa: B006
    small_pages: Annotated[bool, typer.Option(help="Weights lie in torch's memory.")] = False,
) -> None:
    """What a pass of several tokens costs beside one of a single token."""
    torch.set_num_threads(threads)
    if small_pages:
        WeightMemory.zeros = lambda self, num_bytes: torch.zeros(num_bytes, dtype=torch.uint8)  # type: ignore[method-assign]
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=num_layers,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=32_000,
        tie_word_embeddings=True,
    )
    table = Table(title=f"Qwen2 of {num_layers} layers x 1536, {threads} thread(s)")
    for heading in ("weights", "tokens", "ms", "times one token", "GFLOP/s"):
        table.add_column(heading, justify="right")
    result: dict[str, dict[int, float]] = {}
    for kind in weights:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        quantization: Any = "none" if kind == "bfloat16" else kind
        network = native_network(model, name="base", self_check=False, keep_weights=False, quantization=quantization)
        slot = network.kv_cache.allocate()
        network.forward([Block(slot, [1] * NUM_CACHED, 1)])
        own = result.setdefault(kind, {})
        for num_tokens in (1, 2, 3, 4, 5, 6, 8, 12, 16, 32):
            seconds = []
            for _ in range(rounds):
                slot.truncate(NUM_CACHED)
                started = clock()
                network.forward([Block(slot, [1] * num_tokens, num_tokens)])
                seconds.append(clock() - started)
            own[num_tokens] = statistics.median(seconds)
            flops = 2 * num_parameters * num_tokens / own[num_tokens]
            table.add_row(
                kind,
                str(num_tokens),
                f"{1e3 * own[num_tokens]:.1f}",
                f"{own[num_tokens] / own[1]:.2f}",
                f"{flops / 1e9:.0f}",
            )
    Console().print(table)
    facts = {"threads": threads, "num_layers": num_layers, "small_pages": small_pages}
    finish("single_request_passes", {**facts, "seconds": result})


def _engine_speed(engine: Engine, prompts: list[str]) -> float:
    def seconds(max_tokens: int) -> float:
        started = clock()
        engine.generate(prompts, sampling=SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True))
        return clock() - started

    return NUM_TOKENS * len(prompts) / (seconds(NUM_TOKENS + 1) - seconds(1))


def _peer_speed(peer: LlamaCppParallel, prompts: list[list[int]]) -> float:
    def seconds(num_tokens: int) -> float:
        started = clock()
        peer.generate(prompts, num_tokens)
        return clock() - started

    return NUM_TOKENS * len(prompts) / (seconds(NUM_TOKENS + 1) - seconds(1))


if __name__ == "__main__":
    app()
