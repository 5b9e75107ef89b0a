"""How often is a sampled draft of the tuned model accepted: by our race, by inverse transform, and by the best possible rule?

    python -m benchmarks.coupling

The SmolLM2 pair, composed with a weight of 0.5, on sampled answers to eight questions. At every position: 1 - d (d: total
variation distance between the tuned model's and the composed distribution), which rejection sampling reaches and no rule can
exceed; the share of a shared uniform number for which inverse transform gives both the same token; and the share of agreeing
races over a number of seeds.
"""

from __future__ import annotations

import statistics
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.report import finish
from benchmarks.smollm2 import QUESTIONS, SeparateTrio, separate_trio
from eft_engine import EngineConfig, SamplingParams
from eft_engine.decoding.races import race_times
from eft_engine.decoding.sampling import draw, warp


def by_inverse_transform(target: Tensor, draft: Tensor) -> float:
    """Length of the uniform numbers for which the cumulative sums of both rows choose one token."""
    target_end, draft_end = target.double().cumsum(-1), draft.double().cumsum(-1)
    start = torch.maximum(target_end - target, draft_end - draft)
    return float((torch.minimum(target_end, draft_end) - start).clamp(min=0).sum())


def by_race(target: Tensor, draft: Tensor, *, position: int, num_seeds: int) -> float:
    """Share of seeds with which both rows give one token."""
    times = torch.stack([race_times(seed, position, target.shape[-1]) for seed in range(num_seeds)])
    same = draw(target.expand(num_seeds, -1), times) == draw(draft.expand(num_seeds, -1), times)
    return float(same.float().mean())


@torch.inference_mode()
def distributions(
    trio: SeparateTrio, prompt_ids: list[int], answer_ids: list[int], sampling: SamplingParams
) -> list[tuple[Tensor, Tensor]]:
    """Composed and tuned probabilities at every position of an answer."""
    ids = torch.tensor([[*prompt_ids, *answer_ids]])
    base, tuned, reference = (
        model(ids, logits_to_keep=len(answer_ids) + 1).logits[0, :-1].log_softmax(-1)
        for model in (trio.base, trio.tuned, trio.reference)
    )
    params = [sampling] * len(answer_ids)
    return list(zip(warp(base + 0.5 * (tuned - reference), params), warp(tuned, params), strict=True))


def main(
    max_tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 32,
    num_seeds: Annotated[int, typer.Option(help="Races per position.")] = 50,
) -> None:
    """Run and print."""
    trio = separate_trio()
    table = Table(title=f"acceptance of a drafted token, {len(QUESTIONS)} answers of up to {max_tokens} tokens")
    for heading in ("temperature", "best possible (1 - d)", "race", "inverse transform"):
        table.add_column(heading, justify="right")
    result = {}
    for temperature in (0.5, 0.8, 1.0):
        rows = []
        for seed, question in enumerate(QUESTIONS):
            sampling = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
            with trio.engine(EngineConfig(self_check=False)) as engine:
                answer = engine.generate(question, sampling=sampling, reward_weights=0.5).token_ids
            prompt_ids = trio.tokenizer.encode(question)
            for position, (target, draft) in enumerate(distributions(trio, prompt_ids, list(answer), sampling)):
                rows.append(
                    (
                        1 - float((target - draft).abs().sum()) / 2,
                        by_race(target, draft, position=position, num_seeds=num_seeds),
                        by_inverse_transform(target, draft),
                    )
                )
        means = [statistics.fmean(column) for column in zip(*rows, strict=True)]
        table.add_row(f"{temperature:g}", *(f"{mean:.3f}" for mean in means))
        result[f"{temperature:g}"] = dict(zip(("best", "race", "inverse_transform"), means, strict=True))
    Console().print(table)
    finish("coupling", {"acceptance": result, "max_tokens": max_tokens, "num_seeds": num_seeds})


if __name__ == "__main__":
    typer.run(main)
