"""Divergences between a teacher that tells its most probable tokens and a student, over these tokens and all others in one bucket.

By the data-processing inequality the divergence over the buckets is at most the one over all tokens, and they are equal where the
student shares the rest out as the teacher does.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["forward", "reverse", "jensen_shannon"]
"""`forward`: KL(teacher || student). `reverse`: KL(student || teacher). `jensen_shannon`: between both and their mean."""

LOWEST = -20.0
"""Stands for the logarithm of 0 of a teacher where it is divided by: what a composition rules out is that improbable."""


def student_buckets(logits: Tensor, token_ids: Tensor, told: Tensor) -> Tensor:
    """Log-probabilities of the told tokens and, last, of all others together.

    Args:
        logits: [num_tokens, vocab], rows of padding included: a server that knows no better draws them too.
        token_ids: [num_tokens, k], 0 where nothing is told.
        told: [num_tokens, k], whether something is; the first of each row is.

    Returns:
        [num_tokens, k + 1]; what is not told has -inf.

    >>> buckets = student_buckets(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([[2, 0]]), torch.tensor([[True, False]]))
    >>> buckets.exp().tolist()
    [[0.25, 0.0, 0.75]]
    """
    total = logits.logsumexp(dim=-1, keepdim=True)
    named = torch.where(told, token_ids, token_ids[:, :1])
    rest = logits.scatter(-1, named, -math.inf).logsumexp(dim=-1, keepdim=True)
    own = (logits.gather(-1, named) - total).masked_fill(~told, -math.inf)
    return torch.cat([own, rest - total], dim=-1)


def teacher_buckets(logprobs: Tensor, told: Tensor) -> Tensor:
    """Log-probabilities [num_tokens, k] that a teacher tells, and the logarithm of what is left of 1; -inf where nothing is.

    >>> teacher_buckets(torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[True, True]])).exp().tolist()
    [[0.5, 0.25, 0.25]]
    """
    own = logprobs.masked_fill(~told, -math.inf)
    left = 1 - own.double().exp().sum(dim=-1, keepdim=True)
    rest = torch.where(left > 1e-6, left.clamp(min=1e-6).log(), -math.inf)  # less is rounding of the others
    return torch.cat([own, rest.to(own.dtype)], dim=-1)


def divergence(teacher: Tensor, student: Tensor, kind: Divergence = "forward") -> Tensor:
    """In nats, [num_tokens], of log-probabilities [num_tokens, buckets].

    >>> half, other = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    >>> [round(divergence(half, other, kind).item(), 4) for kind in ("forward", "reverse", "jensen_shannon")]
    [0.1438, 0.1308, 0.0338]
    """
    if kind == "forward":
        return _kl(teacher, student)
    if kind == "reverse":
        return _kl(student, teacher.clamp(min=LOWEST))
    mean = torch.logaddexp(teacher, student) - math.log(2)
    return (_kl(teacher, mean) + _kl(student, mean)) / 2


def _kl(of: Tensor, to: Tensor) -> Tensor:
    """Buckets without probability add nothing, and no gradient that is not a number."""
    some = of > -math.inf
    zero = torch.zeros((), dtype=of.dtype, device=of.device)
    differences = torch.where(some, of, zero) - torch.where(some, to, zero)
    return (torch.where(some, of, zero).exp() * differences).masked_fill(~some, 0.0).sum(dim=-1)
