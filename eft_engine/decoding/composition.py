"""Emulated fine-tuning: combining the members' next-token distributions (Mitchell et al. 2023, arXiv 2310.12962).

    composed = normalise( base + sum_i weight_i * (tuned_i - reference_i) )                  equation 4, log-probabilities

The formula is linear in the members, and so is all that is like it (amplification, terms without a reference, prompts as pairs): a
row is described by one coefficient per member. A member with coefficient 0 does not matter and need not be run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eft_engine.decoding.fusion import fused


@dataclass(frozen=True)
class PairMembers:
    """The places of a pair's members: the tuned model (or the positive prompt), and the reference (the negative one), if any."""

    tuned: int
    reference: int | None = None


def direction(pair: PairMembers, num_members: int, *, amplification: float = 1.0) -> list[float]:
    """What weight 1 of a pair adds to the coefficients of all members; the base, the first of them, has 1 without any pair.

    Amplification b (section 3.3 of the paper) scales the up-scaling direction `base - reference`. For any weights:

        (1 - sum_i weight_i) * base + sum_i weight_i * (tuned_i + b * (base - reference_i))

    which is equation 4 for b = 1.

    >>> direction(PairMembers(1, 2), 3)
    [0.0, 1.0, -1.0]
    >>> direction(PairMembers(1, 2), 3, amplification=1.5)
    [0.5, 1.0, -1.5]
    >>> direction(PairMembers(1), 2, amplification=1.5)
    [0.0, 1.0]
    """
    found = [0.0] * num_members
    found[pair.tuned] = 1.0
    if pair.reference is not None:
        found[0] += amplification - 1.0
        found[pair.reference] = -amplification
    return found


@fused
def member_logprobs(logits: Tensor, masked_ids: Tensor, kept_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities over the shared vocabulary.

    Args:
        logits: `[rows, width]`, any float dtype, already cut to the shared width.
        masked_ids: ids that are never generated; they get -inf.
        kept_ids: ids that not all members have; theirs are relative to all shared tokens together (see `add_kept`). None: there
            are none.

    Returns:
        float32 log-probabilities `[rows, width]`, and the normaliser `logits - logprobs` per row `[rows]`.
    """
    scores = logits.float()
    if len(masked_ids):
        scores = scores.index_fill(-1, masked_ids, -torch.inf)
    shared = scores.index_fill(-1, kept_ids, -torch.inf) if kept_ids is not None else scores
    normalisers = by_row(lambda rows: torch.logsumexp(rows, dim=-1), shared)
    return scores - normalisers[:, None], normalisers


def by_row(reduced: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """`reduced(*rows)`, of `[rows, width]` each, so that no row's result depends on how many there are: torch would split the sum
    of a single row between its threads, and that of several not.
    """
    if len(rows[0]) == 1 and rows[0].device.type == "cpu":
        return reduced(*(own.expand(2, -1) for own in rows))[:1]
    return reduced(*rows)


def compose(logprobs: Tensor, coefficients: Tensor) -> Tensor:
    """Unnormalised composed scores.

    A member that gives a token probability 0 forbids it if its coefficient is positive and says nothing about it if it is
    negative (the ratio tuned / reference is not defined there), so nothing becomes NaN:

    >>> logprobs = torch.tensor([[[-1.0, -torch.inf], [-1.0, -1.0], [-2.0, -torch.inf]]])
    >>> compose(logprobs, torch.tensor([[1.0, 1.0, -1.0]]))
    tensor([[0., -inf]])

    Args:
        logprobs: `[rows, members, width]`; a member that was not run may hold anything finite.
        coefficients: `[rows, members]`; 0 for a member that was not run.

    Returns:
        `[rows, width]`, float32.
    """
    if logprobs.device.type == "cpu":
        return _compose_member_by_member(logprobs, coefficients)
    return _compose_at_once(logprobs, coefficients)


@fused
def _compose_at_once(logprobs: Tensor, coefficients: Tensor) -> Tensor:
    """As `compose`, for a device that is not to be waited for."""
    weighted = coefficients[:, :, None]
    silent = torch.isneginf(logprobs) & (weighted <= 0)
    return (logprobs * weighted).masked_fill_(silent, 0.0).sum(dim=1)


def _compose_member_by_member(logprobs: Tensor, coefficients: Tensor) -> Tensor:
    """As `compose`. Nothing as large as `logprobs` is made, and zero probabilities, which are rare, are looked for at once."""
    scores = torch.zeros_like(logprobs[:, 0])
    has_zeros = bool(logprobs.amin() == -torch.inf)
    for values, weights in zip(logprobs.unbind(dim=1), coefficients[:, :, None].unbind(dim=1), strict=True):
        if not weights.any():  # it was not run, or it does not matter
            continue
        weighted = values * weights
        if has_zeros:
            weighted.masked_fill_(torch.isneginf(values) & (weights <= 0), 0.0)
        scores += weighted
    return scores


def add_kept(scores: Tensor, kept: Tensor, shares: Tensor, kept_ids: Tensor) -> None:
    """Give tokens that only tuned models have the probability that these give them, in place.

    Base and reference say nothing about such a token, so there is no ratio to compose; the tuned model's own word is kept, as in
    conservative mode outside the nucleus. With P(kept) the tuned model's probability of all of these tokens together:

        composed'(token) = tuned(token)                            a kept token
        composed'(token) = (1 - P(kept)) * composed(token)         a shared one

    where `composed` is equation 4 over the shared tokens, of members that are normalised over these: what is composed is the
    choice among the tokens that all members know. Of several pairs it is the mean of their tuned models, weighted by `shares`.

    The scores of shared tokens stay as they are. As the scale of a row is free, kept tokens get
    `log(tuned(token) / (1 - P(kept))) + logsumexp(shared scores)`.

    Args:
        scores: composed scores `[rows, width]`, not normalised.
        kept: by tuned model the values of `kept_ids` in `member_logprobs`, `log(tuned(token) / (1 - P(kept)))`,
            `[rows, models, kept]`.
        shares: of each model, `[rows, models]`; they sum to 1, or are all 0: then the row stays as it is.
        kept_ids: `[kept]`.
    """
    shared = scores.index_fill(-1, kept_ids, -torch.inf).logsumexp(dim=-1)
    has_any = (shares > 0).any(dim=-1, keepdim=True)  # [rows, 1]
    log_shares = torch.where(has_any, shares, 1.0).log()[:, :, None]
    log_shared = -torch.nn.functional.softplus(kept.logsumexp(dim=-1))[
        :, :, None
    ]  # log(1 - P(kept)), [rows, models, 1]
    own = (kept + log_shared + log_shares).logsumexp(dim=1) - (log_shared + log_shares).logsumexp(dim=1)  # [rows, kept]
    before = scores.index_select(-1, kept_ids)
    scores.index_copy_(-1, kept_ids, torch.where(has_any, own + shared[:, None], before))


def keep_tuned_outside_nuclei(scores: Tensor, tuned: Tensor, shares: Tensor, top_p: Tensor) -> Tensor:
    """Conservative up-scaling: outside the tuned models' own nuclei their probability is kept as it is (section 4.3).

    The up-scaling ratio base / reference of a token that both small models find improbable is noise; there it is set to 1. Of
    several pairs a token counts that is in the nucleus of any, and outside of all what is kept is their geometric mean.

    Args:
        scores: composed scores of normalised members, `[rows, width]`, not normalised.
        tuned: the tuned models' log-probabilities, `[rows, models, width]`.
        shares: of each model, `[rows, models]`; they sum to 1, or are all 0: then the row stays as it is.
        top_p: size of the nuclei, `[rows]`.
    """
    rows, models, width = tuned.shape
    flat = tuned.reshape(rows * models, width)
    inside = nucleus(flat, top_p.repeat_interleave(models)).view(rows, models, width) & (shares > 0)[:, :, None]
    mean = torch.where((shares > 0)[:, :, None], tuned * shares[:, :, None], 0.0).sum(dim=1)
    keep = inside.any(dim=1) | ~(shares > 0).any(dim=-1, keepdim=True)
    return torch.where(keep, scores, mean)


def bound_implausible(scores: Tensor, differences: Tensor, tuned: Tensor, weights: Tensor, share: float) -> None:
    """Lift no implausible token with more than weight 1, in place: where the tuned model finds a token improbable, what it has over
    the reference is noise, which a weight above 1 makes larger than what the base knows.

    Of a token that the tuned model gives less than `share` of its best token's probability, a positive difference counts with
    weight `min(weight, 1)`. Negative ones, and those of plausible tokens, count with the whole weight; rows of weight 1 or less
    stay as they are.

    >>> scores, tuned = torch.tensor([[4.0, 4.0]]), torch.tensor([[0.9, 0.01]]).log()
    >>> bound_implausible(scores, torch.tensor([[1.5, 1.5]]), tuned, torch.tensor([3.0]), share=0.1)
    >>> scores
    tensor([[4., 1.]])

    Args:
        scores: composed scores `[rows, width]`, of which `weights * differences` is a part.
        differences: what weight 1 of the pair adds to them, `[rows, width]`.
        tuned: its tuned model's log-probabilities, `[rows, width]`.
        weights: its weights, `[rows]`.
        share: 0 to 1, not 0.
    """
    excess = weights[:, None] - 1.0
    bar = tuned.amax(dim=-1, keepdim=True) + math.log(share)
    lifted = (tuned < bar) & (differences > 0) & (excess > 0)
    scores.sub_((differences * excess).masked_fill_(~lifted, 0.0))


def keep_plausible(scores: Tensor, base: Tensor, shares: Tensor) -> None:
    """Forbid, in place, what the base gives less than a share of its best token (contrastive decoding, Li et al. 2022, 3.2).

    Tokens that are forbidden already do not count as the best, so that one is always left.

    Args:
        scores: composed scores `[rows, width]`; -inf where a token is forbidden.
        base: its log-probabilities, `[rows, width]`.
        shares: `[rows]`, 0 to 1.
    """
    known = base.masked_fill(scores.isneginf(), -torch.inf)
    bar = known.amax(dim=-1, keepdim=True) + shares.log()[:, None]
    scores.masked_fill_(known < bar, -torch.inf)


def nucleus(scores: Tensor, top_p: Tensor) -> Tensor:
    """The smallest set of most probable tokens with at least probability `top_p`: mask `[rows, width]`.

    >>> nucleus(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([0.6]))
    tensor([[ True,  True, False]])
    """
    ordered, order = scores.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered  # probability of all tokens ranked higher
    keep = before < top_p[:, None]
    keep[:, 0] = True
    return torch.zeros_like(keep).scatter_(-1, order, keep)
