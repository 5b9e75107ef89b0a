"""Do drafts pay where layers keep states? A hybrid trio and one of attention alone, of equal size, with drafts and without.

    python -m benchmarks.hybrids                          batches of 1 and 8, acceptance 0.8 imposed
    python -m benchmarks.hybrids --acceptance 0.6 --rounds 5

Random weights. Bases of 12 layers x 768 (about 100 million parameters), pairs of 4 layers x 256. The hybrid's layers are those of
Qwen3-Next without experts, three gated delta nets for every layer of attention; the other trio is Llama's. Drafts are the tuned
model's, and pay for all of its passes; how often they are right is imposed (`benchmarks.imposed`). States make them dearer: they
are read token by token, and where one is refused the recurrence is computed again. Seconds include reading the prompt.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3NextConfig, Qwen3NextForCausalLM, logging

from benchmarks.imposed import impose
from benchmarks.report import finish
from benchmarks.rounds import CpuTime, count_cpu_time, measure, medians_of_ratios, run_engine
from eft_engine import Engine, EngineConfig, LoadedPair, SpeculationOptions
from tests.toy import make_tokenizer

BASE_SIZE, PAIR_SIZE = (768, 12), (256, 4)
"""Hidden size and layers."""
VOCAB_SIZE = 8192
PLAIN = SpeculationOptions(drafter="none")
WEIGHT = 0.5
PROMPT = "The lighthouse of Orrin Head was built in 1847 from grey granite, "


def shape_of(hidden_size: int, num_layers: int) -> dict[str, Any]:
    """What both kinds of models have in common."""
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": hidden_size // 64,
        "num_key_value_heads": hidden_size // 128,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "initializer_range": 0.05,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def make_hybrid(hidden_size: int, num_layers: int) -> PreTrainedModel:
    """Gated delta nets, and attention in every fourth layer."""
    heads = hidden_size // 64
    config = Qwen3NextConfig(
        **shape_of(hidden_size, num_layers),
        linear_num_key_heads=heads // 2,
        linear_num_value_heads=heads,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        mlp_only_layers=list(range(num_layers)),
    )
    return Qwen3NextForCausalLM(config)


def make_attention(hidden_size: int, num_layers: int) -> PreTrainedModel:
    """Attention in every layer."""
    return LlamaForCausalLM(LlamaConfig(**shape_of(hidden_size, num_layers)))


KINDS: dict[str, Callable[[int, int], PreTrainedModel]] = {"hybrid": make_hybrid, "attention": make_attention}


@dataclass(frozen=True)
class Asked:
    """An engine over a trio of one kind, and prompts whose right answers its drafter knows."""

    engine: Engine
    prompts: list[str]
    num_parameters: tuple[int, int]
    tokens_per_step: dict[str, float]

    def seconds(self, size: int, name: str, *, speculation: SpeculationOptions, max_tokens: int) -> float:
        """Of the first `size` prompts together."""
        outputs, seconds = run_engine(
            self.engine, self.prompts[:size], max_tokens=max_tokens, weight=WEIGHT, speculation=speculation
        )
        steps = sum(output.metrics.num_steps for output in outputs)
        self.tokens_per_step[name] = sum(output.usage.completion_tokens for output in outputs) / steps
        return seconds


def ask(kind: str, *, batch_size: int, max_tokens: int, acceptance: float) -> Asked:
    """Plain answers are what drafts are made from."""
    models = []
    for seed, (hidden_size, num_layers) in enumerate((BASE_SIZE, PAIR_SIZE, PAIR_SIZE)):
        torch.manual_seed(seed)
        models.append(KINDS[kind](hidden_size, num_layers).eval())
    base, tuned, reference = models
    config = EngineConfig(max_warm_prefixes=0, max_num_seqs=batch_size)
    tokenizer = make_tokenizer()
    pairs = {"pair": LoadedPair(tuned, reference)}
    engine = Engine.from_models(base, tokenizer=tokenizer, pairs=pairs, config=config)
    prompts = [PROMPT + str(index) for index in range(batch_size)]
    outputs, _ = run_engine(engine, prompts, max_tokens=max_tokens, weight=WEIGHT, speculation=PLAIN)
    right = {tuple(tokenizer.encode(prompt)): output.token_ids for prompt, output in zip(prompts, outputs, strict=True)}
    impose(engine, right, acceptance)
    return Asked(engine, prompts, (base.num_parameters(), tuned.num_parameters()), {})


def main(
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Requests together; repeat for several. [1 and 8]")
    ] = None,
    acceptance: Annotated[float, typer.Option(min=0, max=1, help="How often drafts are right.")] = 0.8,
    drafts: Annotated[int, typer.Option(min=1, help="Most drafts in a row; the engine tries fewer where it pays.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens per request.")] = 48,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; medians of their ratios are reported.")] = 3,
    cpu_time: CpuTime = False,
) -> None:
    """Print a table; the last line is JSON."""
    if cpu_time:
        count_cpu_time()
    logging.set_verbosity_error()
    batches = batch or [1, 8]
    speculations = {
        "none": PLAIN,
        "adaptive": SpeculationOptions(drafter="tuned", max_draft_tokens=drafts),
        "always": SpeculationOptions(drafter="tuned", max_draft_tokens=drafts, adaptive=False),
    }
    asked = {kind: ask(kind, batch_size=max(batches), max_tokens=max_tokens, acceptance=acceptance) for kind in KINDS}
    cells = list(itertools.product(KINDS, batches, speculations))
    runs: dict[str, Callable[[], float]] = {}
    for kind, size, name in cells:
        key = f"{kind}, {size}, {name}"
        runs[key] = partial(asked[kind].seconds, size, key, speculation=speculations[name], max_tokens=max_tokens)
    times = measure(runs, rounds)
    title = (
        f"{max_tokens} tokens per request, up to {drafts} drafts right {acceptance:.0%} of the time, weight {WEIGHT:g}, float32, "
        f"medians of {rounds} rounds"
    )
    table = Table(title=title)
    for heading in ("trio", "together", "drafts", "tokens/s", "times none", "tokens per step"):
        table.add_column(heading, justify="right")
    result: dict[str, Any] = {}
    for kind, size, name in cells:
        key = f"{kind}, {size}, {name}"
        speed = size * max_tokens / statistics.median(times[key])
        ratio = medians_of_ratios(times, f"{kind}, {size}, none", key)
        per_step = asked[kind].tokens_per_step[key]
        table.add_row(kind, str(size), name, f"{speed:.1f}", f"{ratio:.2f}x", f"{per_step:.2f}")
        result[key] = {"tokens_per_s": speed, "ratio": ratio, "tokens_per_step": per_step}
    console = Console()
    console.print(table)
    sizes = {kind: own.num_parameters for kind, own in asked.items()}
    for kind, (base, pair) in sizes.items():
        console.print(f"{kind}: base of {base / 1e6:.0f} million parameters, pair of {pair / 1e6:.0f} million each")
        asked[kind].engine.close()
    conditions = {"acceptance": acceptance, "drafts": drafts, "max_tokens": max_tokens, "rounds": rounds}
    finish("hybrids", {**conditions, "cpu_time": cpu_time, "parameters": sizes, "results": result})


if __name__ == "__main__":
    typer.run(main)
