"""What does composing cost on top of running the members? Batch 1, no speculation, three separate SmolLM2 networks, float32.

The engine's time per token is compared with the sum of the three members' own forward times per token: each member decoded alone
by transformers with its own cache (DynamicCache, sdpa), on the same prompt, over the same number of tokens, in the same run.

python -m benchmarks.composition_overhead
"""

from __future__ import annotations

import itertools
import statistics
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.report import finish
from benchmarks.rounds import CpuTime, clock, count_cpu_time
from benchmarks.smollm2 import NO_DRAFTS, QUESTIONS, SeparateTrio, separate_trio
from eft_engine import SamplingParams


@torch.inference_mode()
def member_seconds_per_token(model: Any, prompt_ids: list[int], token_ids: list[int]) -> float:
    """Median seconds of transformers' forward for one token after the prompt."""
    cache = model(torch.tensor([prompt_ids]), use_cache=True, logits_to_keep=1).past_key_values
    times: list[float] = []
    for token_id in token_ids:
        started = clock()
        model(torch.tensor([[token_id]]), past_key_values=cache, use_cache=True)
        times.append(clock() - started)
    return statistics.median(times)


def engine_run(trio: SeparateTrio, prompt: str, max_tokens: int, weight: float) -> tuple[float, list[int]]:
    """Median seconds between two tokens of a stream, and the tokens."""
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    with trio.engine(NO_DRAFTS) as engine:
        stamps: list[float] = []
        token_ids: list[int] = []
        for delta in engine.stream(prompt, sampling=sampling, reward_weights=weight):
            stamps.append(clock())
            token_ids += delta.token_ids
    return statistics.median(b - a for a, b in itertools.pairwise(stamps)), token_ids


def main(
    rounds: Annotated[int, typer.Option(help="Repetitions; the median of their ratios is reported.")] = 5,
    max_tokens: Annotated[int, typer.Option(help="Tokens per round.")] = 32,
    weight: Annotated[float, typer.Option(help="Reward weight.")] = 0.5,
    cpu_time: CpuTime = False,
) -> None:
    """Print the ratio engine / sum of members."""
    if cpu_time:
        count_cpu_time()
    trio = separate_trio()
    prompt = QUESTIONS[0]
    prompt_ids = trio.tokenizer.encode(prompt)
    ratios: list[float] = []
    for index in range(rounds):
        composed, token_ids = engine_run(trio, prompt, max_tokens, weight)
        members = sum(
            member_seconds_per_token(model, prompt_ids, token_ids) for model in (trio.base, trio.tuned, trio.reference)
        )
        ratios.append(composed / members)
        Console().print(
            f"round {index}: engine {composed * 1e3:.1f} ms/token, members {members * 1e3:.1f} ms/token, "
            f"ratio {ratios[-1]:.3f}"
        )
    finish(
        "composition_overhead",
        {
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "rounds": rounds,
            "weight": weight,
            "cpu_time": cpu_time,
        },
    )


if __name__ == "__main__":
    typer.run(main)
