"""What the members' distributions at a position tell before its token is drawn; see `weights.Measure` for what each is."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from eft_engine.weights import Measure


def entropy(logprobs: Tensor) -> Tensor:
    """In nats, `[rows, width]` -> `[rows]`."""
    found: Tensor = torch.special.entr(logprobs.exp())
    return found.sum(dim=-1)


def confidence(logprobs: Tensor) -> Tensor:
    """Probability of the best token, `[rows, width]` -> `[rows]`."""
    return logprobs.amax(dim=-1).exp()


def kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second) in nats, of `[rows, width]` each -> `[rows]`. +inf where the second rules out what the first does not;
    what is too improbable for a number of its own counts as ruled out.

    >>> kl(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
    tensor([0.1438])
    """
    probabilities = first.exp()
    return torch.where(probabilities == 0.0, 0.0, probabilities * (first - second)).sum(dim=-1).clamp_min(0.0)


def total_variation(first: Tensor, second: Tensor) -> Tensor:
    """Half of the summed differences, `[rows]`."""
    return (first.exp() - second.exp()).abs().sum(dim=-1) / 2


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """In bits, `[rows]`: 0 for equal distributions, 1 for disjoint ones.

    >>> jensen_shannon(torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.0, 0.0, 1.0]]).log())
    tensor([1.])
    """
    mean = torch.logaddexp(first, second) - math.log(2.0)
    return (kl(first, mean) + kl(second, mean)) / (2 * math.log(2.0))


OF_BASE: dict[Measure, Callable[[Tensor], Tensor]] = {"base_entropy": entropy, "base_confidence": confidence}
OF_PAIR: dict[Measure, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": kl,
    "total_variation": total_variation,
    "jensen_shannon": jensen_shannon,
}
