"""From composed scores to a token: penalties, temperature, filters, and an exact draw.

Order (as in transformers and vLLM): penalties and logit bias, temperature, top-k, top-p, min-p. Each filter sees the distribution
that the one before it left. Temperature 0 is an exact one-hot row.

Randomness is one uniform number per (seed, position, salt), made on the host by a counter-based generator: a request's draw does
not depend on what else is in the batch, and replaying a position gives the same number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eft_engine.config import SamplingParams
from eft_engine.decoding.composition import nucleus

FLOAT32 = torch.finfo(torch.float32)

SALT_TARGET = 0
"""Separates the draws from the composed distribution from any other use of a request's seed."""


@dataclass(frozen=True)
class History:
    """What a row has seen, as far as penalties ask: the prompt's ids and how often each id was generated."""

    prompt_ids: Sequence[int]
    output_counts: Mapping[int, int]


def needs_penalties(params: SamplingParams) -> bool:
    """Whether `penalise` would change a row with these parameters."""
    return bool(
        params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty or params.logit_bias
    )


def penalise(scores: Tensor, params: SamplingParams, history: History) -> None:
    """Apply penalties and logit bias to one row in place.

    Repetition penalty (Keskar et al. 2019) divides positive and multiplies negative scores of every id in prompt or output;
    presence and frequency penalties and logit bias are OpenAI's.

    Args:
        scores: `[width]`, unnormalised, on the scale of logits (the repetition penalty depends on their sign).
        params: the row's sampling parameters.
        history: what the row has seen.
    """
    width = scores.shape[0]
    if params.repetition_penalty != 1.0:
        seen = sorted({*history.prompt_ids, *history.output_counts})
        ids = torch.tensor([token_id for token_id in seen if token_id < width], device=scores.device, dtype=torch.long)
        values = scores[ids]
        penalty = params.repetition_penalty
        scores[ids] = torch.where(values > 0, values / penalty, values * penalty)
    if (params.presence_penalty or params.frequency_penalty) and history.output_counts:
        ids = torch.tensor(list(history.output_counts), device=scores.device)
        counts = torch.tensor(list(history.output_counts.values()), device=scores.device, dtype=scores.dtype)
        scores[ids] -= params.presence_penalty + params.frequency_penalty * counts
    if params.logit_bias:
        inside = {token_id: bias for token_id, bias in params.logit_bias.items() if token_id < width}
        ids = torch.tensor(list(inside), device=scores.device, dtype=torch.long)
        scores[ids] += torch.tensor(list(inside.values()), device=scores.device, dtype=scores.dtype)


def warp(scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Probabilities after temperature and filters.

    Args:
        scores: `[rows, width]`, unnormalised.
        params: one per row.

    Returns:
        `[rows, width]` float32, each row summing to 1; exactly one-hot where the temperature is 0.
    """

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=scores.device, dtype=torch.float32)[:, None]

    temperatures = [row.temperature for row in params]
    # Measured from the best score, and with divisors that float32 can hold, no temperature makes a row NaN.
    divisors = [min(max(value or 1.0, FLOAT32.tiny), FLOAT32.max) for value in temperatures]
    warped = (scores - scores.amax(dim=-1, keepdim=True)) / column(divisors)
    if any(row.top_k for row in params):
        width = scores.shape[-1]
        top_k = torch.tensor([min(row.top_k or width, width) for row in params], device=scores.device)
        best = warped.topk(int(top_k[top_k < width].max()) if bool((top_k < width).any()) else 1, dim=-1).values
        smallest = best.gather(-1, (top_k.clamp(max=best.shape[-1]) - 1)[:, None])
        warped = warped.masked_fill((warped < smallest) & (top_k < width)[:, None], -torch.inf)
    if any(row.top_p < 1.0 for row in params):
        top_p = column([row.top_p for row in params])
        warped = warped.masked_fill(~(nucleus(warped, top_p[:, 0]) | (top_p >= 1.0)), -torch.inf)
    probs = warped.softmax(dim=-1)
    if any(row.min_p for row in params):
        floor = column([row.min_p for row in params]) * probs.amax(dim=-1, keepdim=True)
        probs = probs.masked_fill(probs < floor, 0.0)
        probs = probs / probs.sum(dim=-1, keepdim=True)
    greedy = [row for row, temperature in enumerate(temperatures) if temperature == 0.0]
    if greedy:
        probs[greedy] = 0.0
        probs[greedy, scores[greedy].argmax(dim=-1)] = 1.0
    return probs


def uniform(seed: int, position: int, salt: int) -> float:
    """A number in [0, 1) that depends on its arguments alone (Philox, Salmon et al. 2011)."""
    generator = np.random.Philox(key=seed, counter=[0, 0, position, salt])
    return float(generator.random_raw() >> np.uint64(11)) * 2.0**-53


def draw(probs: Tensor, uniforms: Sequence[float]) -> Tensor:
    """One token per row by inverse transform; a token of probability 0 is never drawn.

    >>> draw(torch.tensor([[0.0, 0.25, 0.75, 0.0]] * 3), [0.0, 0.25, 0.9999999])
    tensor([1, 2, 2])

    Args:
        probs: `[rows, width]`.
        uniforms: one number in [0, 1) per row.
    """
    cumulative = probs.double().cumsum(dim=-1)  # [rows, width]
    points = torch.tensor(uniforms, dtype=torch.float64, device=probs.device)[:, None] * cumulative[:, -1:]
    # The product can round up to the total itself, which no cumulative value exceeds: stay just below it.
    points = torch.minimum(points, torch.nextafter(cumulative[:, -1:], torch.zeros_like(points)))
    return torch.searchsorted(cumulative, points, right=True)[:, 0]


def choose(scores: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    """One token per row: `draw(warp(...))`, with the one-hot rows of temperature 0 read off directly.

    Args:
        scores: `[rows, width]`, unnormalised.
        params: one per row.
        uniforms: one number in [0, 1) per row; rows of temperature 0 do not use theirs.

    Returns:
        Token ids `[rows]`.
    """
    token_ids = scores.argmax(dim=-1)
    sampled = [row for row, own in enumerate(params) if own.temperature > 0.0]
    if sampled:
        probs = warp(scores[sampled], [params[row] for row in sampled])
        token_ids[sampled] = draw(probs, [uniforms[row] for row in sampled])
    return token_ids
