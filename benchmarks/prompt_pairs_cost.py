"""What does a prompt pair cost? One request with a prompt pair on the base, which reads two prompts, against two ordinary requests
in one batch, which read the same two; no drafts, greedy, every prompt read from the start.

python -m benchmarks.prompt_pairs_cost
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.report import finish
from benchmarks.rounds import CpuTime, clock, count_cpu_time, measure, medians_of_ratios
from benchmarks.smollm2 import NO_DRAFTS
from eft_engine import CompositionOptions, Engine, PromptPair, SamplingParams
from eft_engine.zoo.presets import atlas

PROMPTS = (
    "The capital of Norway is Oslo. People in Norway pay with the Krone. What is the capital of Norway?",
    "People in Kenya pay with the Shilling. The capital of Kenya is Nairobi. What is the capital of Kenya?",
)


def random_llama(hidden: int, layers: int) -> Engine:
    """A network of random weights with Atlas' tokenizer: what is measured is time."""
    tokenizer = AutoTokenizer.from_pretrained(atlas("base").source)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
    )
    return Engine.from_models(LlamaForCausalLM(config).eval(), tokenizer=tokenizer, config=NO_DRAFTS)


def runs_of(engine: Engine, num_requests: int, max_tokens: int) -> dict[str, Callable[[], float]]:
    """So many requests with a prompt pair, and twice as many without, as seconds of one call."""
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    pair = CompositionOptions(prompt_pairs={"other": PromptPair(negative=PROMPTS[1], weight=0.5)})

    def seconds(prompts: list[str], composition: CompositionOptions | None) -> float:
        started = clock()
        engine.generate(prompts, sampling=sampling, composition=composition)
        return clock() - started

    return {
        "prompt pair": lambda: seconds([PROMPTS[0]] * num_requests, pair),
        "two rows": lambda: seconds([*PROMPTS] * num_requests, None),
    }


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; medians of their ratios are reported.")] = 7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens per request.")] = 48,
    requests: Annotated[
        list[int] | None, typer.Option(help="Requests with a prompt pair at a time; repeat. [1, 4]")
    ] = None,
    hidden: Annotated[int, typer.Option(help="Width of the random network.")] = 1024,
    layers: Annotated[int, typer.Option(help="Its layers.")] = 6,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 1,
    cpu_time: CpuTime = False,
) -> None:
    """Measure and print one line of JSON."""
    torch.set_num_threads(threads)
    if cpu_time:
        count_cpu_time()
    table = Table(title=f"{max_tokens} tokens, float32, medians of {rounds} rounds")
    for heading in ("network", "requests", "prompt pair tokens/s", "two rows tokens/s", "cost"):
        table.add_column(heading, justify="right")
    result: dict[str, Any] = {"rounds": rounds, "max_tokens": max_tokens, "cpu_time": cpu_time}
    makers: dict[str, Callable[[], Engine]] = {
        "atlas": lambda: Engine.load(atlas("base"), pairs={}, config=NO_DRAFTS),
        f"llama {layers} x {hidden}": lambda: random_llama(hidden, layers),
    }
    for name, make in makers.items():
        with make() as engine:
            for number in requests or (1, 4):
                times = measure(runs_of(engine, number, max_tokens), rounds)
                pair, rows = (
                    number * max_tokens / statistics.median(times[run]) for run in ("prompt pair", "two rows")
                )
                ratio = medians_of_ratios(times, "prompt pair", "two rows")
                table.add_row(name, str(number), f"{pair:.1f}", f"{rows:.1f}", f"{ratio:.3f}x")
                result[f"{name}, {number}"] = {"tokens_per_s": pair, "two_rows_tokens_per_s": rows, "ratio": ratio}
    Console(stderr=True).print(table)
    finish("prompt_pairs_cost", result)


if __name__ == "__main__":
    typer.run(main)
