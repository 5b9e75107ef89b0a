"""Muon: momentum whose matrices are made orthogonal before the step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# Quintics that drive all singular values towards 1 in few steps (Jordan et al. 2024; steeper first ones: Amsel et al. 2025).
COEFFICIENTS = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (2.8366, -3.0525, 1.2012))


def orthogonalise(stack: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Roughly the closest orthogonal matrix to each of `stack` [matrices, rows, columns], by Newton-Schulz in `dtype`."""
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for a, b, c in COEFFICIENTS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.mT if tall else x).to(stack.dtype)
    return result


class Muon(torch.optim.Optimizer):
    """For the weight matrices of the blocks; embeddings and norms belong to AdamW.

    torch's own Muon iterates over one matrix at a time, always in bfloat16, which many CPUs emulate; here matrices of one shape are
    stacked and `dtype` is chosen.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[torch.nn.Parameter, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append((parameter, parameter.grad))
            for shape, parameters in by_shape.items():
                directions = []
                for parameter, gradient in parameters:
                    state = self.state[parameter]
                    velocity = state.setdefault("velocity", torch.zeros_like(parameter))
                    velocity.lerp_(gradient, 1 - group["momentum"])
                    directions.append(gradient.lerp(velocity, group["momentum"]))
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for (parameter, _), update in zip(
                    parameters, orthogonalise(torch.stack(directions), self.dtype), strict=True
                ):
                    parameter.add_(update, alpha=-scale)
