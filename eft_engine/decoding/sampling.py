"""From composed scores to a token: penalties, temperature, filters, and an exact draw.

Order (as in transformers and vLLM): penalties and logit bias, temperature, top-k, top-p, min-p. Each filter sees the distribution
that the one before it left. Temperature 0 is an exact one-hot row.

Draws are exponential races (equivalently Gumbel-max): every token has an exponential time by (seed, position, token), see
`races`, and the one with the smallest time / probability wins. A request's draw does not depend on what else is
in the batch, replaying a position gives the same token, and two similar distributions mostly give the same token from the same
times: with probability at least (1 - d) / (1 + d) at total variation distance d (Daliri, Musco and Suresh 2025,
arXiv 2408.07978). That is what drafting lives on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eft_engine.config import SamplingParams
from eft_engine.decoding.composition import nucleus
from eft_engine.transfer import upload

FLOAT32 = torch.finfo(torch.float32)


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
        ids = upload([token_id for token_id in seen if token_id < width], scores.device, dtype=torch.long)
        values = scores[ids]
        penalty = params.repetition_penalty
        scores[ids] = torch.where(values > 0, values / penalty, values * penalty)
    if (params.presence_penalty or params.frequency_penalty) and history.output_counts:
        ids = upload(list(history.output_counts), scores.device)
        counts = upload(list(history.output_counts.values()), scores.device, dtype=scores.dtype)
        scores[ids] -= params.presence_penalty + params.frequency_penalty * counts
    if params.logit_bias:
        inside = {token_id: bias for token_id, bias in params.logit_bias.items() if token_id < width}
        ids = upload(list(inside), scores.device, dtype=torch.long)
        scores[ids] += upload(list(inside.values()), scores.device, dtype=scores.dtype)


def forbid(scores: Tensor, masks: Sequence[bytes]) -> None:
    """Set the scores of tokens that a grammar does not allow to -inf, in place.

    Args:
        scores: `[rows, width]`.
        masks: per row a bit per token id, the lowest bit of a byte first; 1 allows.
    """
    bits = np.frombuffer(b"".join(masks), dtype=np.uint8).reshape(len(masks), -1)
    allowed = np.unpackbits(bits, axis=-1, bitorder="little")[:, : scores.shape[-1]]
    scores.masked_fill_(~upload(torch.from_numpy(allowed.view(np.bool_)), scores.device), -torch.inf)


def warp(scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Probabilities after temperature and filters.

    Args:
        scores: `[rows, width]`, unnormalised.
        params: one per row.

    Returns:
        `[rows, width]` float32, each row summing to 1; exactly one-hot where the temperature is 0.
    """

    def column(values: list[float]) -> Tensor:
        return upload(values, scores.device, dtype=torch.float32)[:, None]

    temperatures = [row.temperature for row in params]
    # Measured from the best score, and with divisors that float32 can hold, no temperature makes a row NaN.
    divisors = [min(max(value or 1.0, FLOAT32.tiny), FLOAT32.max) for value in temperatures]
    warped = (scores - scores.amax(dim=-1, keepdim=True)) / column(divisors)
    if any(row.top_k for row in params):
        width = scores.shape[-1]
        limits = [min(row.top_k or width, width) for row in params]
        top_k = upload(limits, scores.device)
        best = warped.topk(max([limit for limit in limits if limit < width], default=1), dim=-1).values
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
        rows = upload(greedy, scores.device)
        probs[rows] = 0.0
        probs[rows, scores[rows].argmax(dim=-1)] = 1.0
    return probs


def draw(probs: Tensor, times: Tensor) -> Tensor:
    """One token per row, the first in its race; a token of probability 0 is never drawn.

    >>> draw(torch.tensor([[0.0, 0.25, 0.75], [0.0, 0.25, 0.75]]), torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.1, 1.0]]))
    tensor([2, 1])

    Args:
        probs: `[rows, width]`; at least one of each row is a normal positive number.
        times: `[rows, width]`, see `races.race_times`.
    """
    return (probs / times).argmax(dim=-1)


def choose(scores: Tensor, params: Sequence[SamplingParams], times: Sequence[Tensor | None]) -> Tensor:
    """One token per row: `draw(warp(...))`, with the one-hot rows of temperature 0 read off directly.

    Args:
        scores: `[rows, width]`, unnormalised.
        params: one per row.
        times: `[width]` per row, see `races.race_times`; rows of temperature 0 need none.

    Returns:
        Token ids `[rows]`.
    """
    token_ids = scores.argmax(dim=-1)
    sampled = [row for row, own in enumerate(params) if own.temperature > 0.0]
    if sampled:
        probs = warp(scores[upload(sampled, scores.device)], [params[row] for row in sampled])
        own = [time for row in sampled if (time := times[row]) is not None]
        token_ids[upload(sampled, scores.device)] = draw(probs, torch.stack(own))
    return token_ids
