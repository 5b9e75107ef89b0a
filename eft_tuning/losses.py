"""What is minimised: cross-entropy at answers, and where content is held, the divergence from the model before tuning.

Logits are computed where an answer is and nowhere else: with the vocabularies of today the head is a large part of a small model.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn import functional

from eft_tuning.errors import NonFiniteLossError

IGNORED = -100
"""Label of a token that is not learned, as everywhere in transformers."""


def answer_positions(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the next token is to be learned.

    Args:
        labels: [batch, width], `IGNORED` where nothing is learned.

    Returns:
        `columns` [num_columns], positions at which some row learns its next token; `chosen` [batch, num_columns], which rows do;
        and their next tokens [num_chosen], row by row.

    >>> columns, chosen, targets = answer_positions(torch.tensor([[-100, -100, 7, 8], [-100, 5, 6, -100]]))
    >>> columns.tolist(), chosen.tolist(), targets.tolist()
    ([0, 1, 2], [[False, True, True], [True, True, False]], [7, 8, 5, 6])
    """
    following = labels[:, 1:]
    wanted = following != IGNORED
    columns = wanted.any(dim=0).nonzero()[:, 0]
    chosen = wanted[:, columns]
    return columns, chosen, following[:, columns][chosen]


def logits_at(model: Any, inputs: dict[str, Any], columns: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Logits [num_chosen, vocab] in float32 at the chosen positions (`answer_positions`) of a causal language model."""
    arguments = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
    if takes_positions(model):
        logits: torch.Tensor = model(**arguments, logits_to_keep=columns).logits
    else:
        logits = model(**arguments).logits[:, columns]
    return logits[chosen].float()


def takes_positions(model: Any) -> bool:
    """Whether the model's class computes logits at given positions alone."""
    network = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(type(network).forward).parameters


def negative_log_likelihood(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[num_tokens] of logits [num_tokens, vocab] and the tokens [num_tokens] that follow."""
    return functional.cross_entropy(logits, targets, reduction="none")


def divergence(reference: torch.Tensor, tuned: torch.Tensor, *, at: float = 1.0) -> torch.Tensor:
    """KL(reference || composition of the reference with its own pair at a weight) / weight, in nats, [num_tokens].

    A large model adds tuned - reference to scores of its own. A token that the tuned model lifts from a probability of 1e-6 to 0.05
    changes KL(reference || tuned) by next to nothing, and the composition by 11 nats. At a weight above 1 it is seen: there the
    lift is multiplied, as the dial does.

    Args:
        reference: logits [num_tokens, vocab].
        tuned: the same.
        at: the weight; 1 is KL(reference || tuned).

    >>> same = torch.tensor([[1.0, 2.0, 3.0]])
    >>> divergence(same, same + 5, at=4.0).abs().max().item() < 1e-6
    True
    >>> sure, lifted = torch.tensor([[0.9999, 0.0001]]).log(), torch.tensor([[0.95, 0.05]]).log()
    >>> [round(divergence(sure, lifted, at=weight).item(), 2) for weight in (1.0, 2.0)]
    [0.05, 1.68]
    """
    before, after = functional.log_softmax(reference, dim=-1), functional.log_softmax(tuned, dim=-1)
    composed = functional.log_softmax(before + at * (after - before), dim=-1)
    return functional.kl_div(composed, before, log_target=True, reduction="none").sum(dim=-1) / at


def check_finite(loss: torch.Tensor, *, step: int, advice: str) -> None:
    """Stop a training whose loss is no number; `advice` says what to try.

    Raises:
        NonFiniteLossError: it is infinite or NaN.
    """
    if not torch.isfinite(loss):
        raise NonFiniteLossError(
            f"the loss of step {step} is {loss.item()}: training has left what numbers can hold. Nothing was saved since the last "
            f"checkpoint; try {advice}",
            step=step,
        )
