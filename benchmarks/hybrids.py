"""Do drafts pay where layers keep states? A hybrid trio and one of attention alone, of equal size, with drafts and without.

    python -m benchmarks.hybrids                          batches of 1 and 8, acceptance 0.8 imposed
    python -m benchmarks.hybrids --acceptance 0.6 --rounds 5

Random weights. Bases of 12 layers x 768 (about 100 million parameters without the vocabulary), pairs of 4 layers x 256. The hybrid's
layers are those of Qwen3-Next without experts, three gated delta nets for every layer of attention; the other trio is Llama's.
Drafts are the tuned model's, and pay for all of its passes; how often they are right is imposed (`benchmarks.imposed`). States
make them dearer: they are read token by token, and where one is refused the recurrence is computed again.
"""

from __future__ import annotations

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
class Trio:
    """Three models of one kind."""

    base: PreTrainedModel
    tuned: PreTrainedModel
    reference: PreTrainedModel

    @classmethod
    def of(cls, kind: str, *, base_size: tuple[int, int], pair_size: tuple[int, int]) -> Trio:
        """Random weights; sizes are hidden size and number of layers."""
        models = []
        for seed, size in enumerate((base_size, pair_size, pair_size)):
            torch.manual_seed(seed)
            models.append(KINDS[kind](*size).eval())
        return cls(*models)

    def engine(self, batch_size: int) -> Engine:
        """Nothing is warm, all requests run together."""
        config = EngineConfig(max_warm_prefixes=0, max_num_seqs=batch_size)
        pairs = {"pair": LoadedPair(self.tuned, self.reference)}
        return Engine.from_models(self.base, tokenizer=make_tokenizer(), pairs=pairs, config=config)


@dataclass(frozen=True)
class Ready:
    """An engine and its prompts, whose right answers are known."""

    engine: Engine
    prompts: list[str]
    max_tokens: int
    metrics: dict[str, float]

    def seconds(self, name: str, speculation: SpeculationOptions) -> float:
        """Of one call."""
        outputs, seconds = run_engine(
            self.engine, self.prompts, max_tokens=self.max_tokens, weight=WEIGHT, speculation=speculation
        )
        steps = sum(output.metrics.num_steps for output in outputs)
        self.metrics[name] = sum(output.usage.completion_tokens for output in outputs) / steps
        return seconds


def make_ready(trio: Trio, batch_size: int, max_tokens: int, acceptance: float) -> Ready:
    """The plain answers are what drafts are made from."""
    engine = trio.engine(batch_size)
    prompts = [PROMPT * 2 + str(index) for index in range(batch_size)]
    outputs, _ = run_engine(engine, prompts, max_tokens=max_tokens, weight=WEIGHT, speculation=PLAIN)
    ids = [tuple(engine.tokenizer.encode(prompt)) for prompt in prompts]
    impose(engine, {own: output.token_ids for own, output in zip(ids, outputs, strict=True)}, acceptance)
    return Ready(engine, prompts, max_tokens, {})


def main(
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Requests together; repeat for several. [1 and 8]")] = None,
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
    runs: dict[str, Callable[[], float]] = {}
    ready: dict[tuple[str, int], Ready] = {}
    speculations = {
        "none": PLAIN,
        "adaptive": SpeculationOptions(drafter="tuned", max_draft_tokens=drafts),
        "always": SpeculationOptions(drafter="tuned", max_draft_tokens=drafts, adaptive=False),
    }
    sizes = {}
    for kind in KINDS:
        trio = Trio.of(kind, base_size=(768, 12), pair_size=(256, 4))
        sizes[kind] = [trio.base.num_parameters(), trio.tuned.num_parameters()]
        for size in batches:
            own = Trio(trio.base, trio.tuned, trio.reference)
            ready[kind, size] = make_ready(own, size, max_tokens, acceptance)
            for name, speculation in speculations.items():
                runs[f"{kind}, {size}, {name}"] = partial(ready[kind, size].seconds, name, speculation)
    times = measure(runs, rounds)
    title = (
        f"{max_tokens} tokens per request, up to {drafts} drafts right {acceptance:.0%} of the time, weight {WEIGHT:g}, float32, "
        f"medians of {rounds} rounds"
    )
    table = Table(title=title)
    for heading in ("trio", "together", "drafts", "tokens/s", "times none", "tokens per step"):
        table.add_column(heading, justify="right")
    result: dict[str, Any] = {}
    for (kind, size), own_ready in ready.items():
        for name in speculations:
            key = f"{kind}, {size}, {name}"
            seconds = sorted(times[key])[len(times[key]) // 2]
            ratio = medians_of_ratios(times, f"{kind}, {size}, none", key)
            speed = size * max_tokens / seconds
            per_step = own_ready.metrics[name]
            table.add_row(kind, str(size), name, f"{speed:.1f}", f"{ratio:.2f}x", f"{per_step:.2f}")
            result[key] = {"tokens_per_s": speed, "ratio": ratio, "tokens_per_step": per_step}
        own_ready.engine.close()
    console = Console()
    console.print(table)
    for kind, (base, pair) in sizes.items():
        console.print(f"{kind}: base of {base / 1e6:.0f} million parameters, pair of {pair / 1e6:.0f} million each")
    conditions = {"acceptance": acceptance, "drafts": drafts, "max_tokens": max_tokens, "rounds": rounds}
    finish("hybrids", {**conditions, "cpu_time": cpu_time, "parameters": sizes, "results": result})


if __name__ == "__main__":
    typer.run(main)
