"""The tensor functions of the composition inside vLLM: weights that travel as columns, and logits that become one row.

vLLM gathers rows of one tensor of hidden states, in many places, and asks the model for the logits of those rows. So the
weights stand in the rows themselves, behind the hidden states of all members: whatever gathers rows gathers their weights.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def num_weight_columns(num_pairs: int, dtype: torch.dtype) -> int:
    """Columns of `dtype` that hold `num_pairs` weights in float32."""
    return num_pairs * torch.float32.itemsize // dtype.itemsize


def weights_to_columns(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """The bits of float32 weights as numbers of another type; nothing is rounded, and copies keep them.

    Args:
        weights: [tokens, pairs], float32.
        dtype: of the hidden states: float32, or a type half as wide.

    Returns:
        [tokens, num_weight_columns(pairs, dtype)].

    >>> columns = weights_to_columns(torch.tensor([[0.7, -1.37]]), torch.bfloat16)
    >>> columns.shape, columns_to_weights(columns).tolist() == torch.tensor([[0.7, -1.37]]).tolist()
    (torch.Size([1, 4]), True)
    """
    return weights.contiguous().view(dtype)


def columns_to_weights(columns: Tensor) -> Tensor:
    """The weights back: [rows, columns] -> [rows, pairs], float32. `columns` may be a slice of a wider tensor."""
    return columns.clone(memory_format=torch.contiguous_format).view(torch.float32)


def compose_logits(base: Tensor, pairs: Iterable[tuple[Tensor, Tensor | None]], weights: Tensor) -> Tensor:
    """The sum base + sum of weight * (tuned - reference), up to a constant per row (softmax does not see it). A term has no
    reference.

    Args:
        base: [rows, vocab] logits, float32; it is overwritten with the result.
        pairs: tuned and reference logits of each pair, [rows, their vocab]; read one pair at a time. A vocabulary that ends
            earlier than the base's leaves the base's further ids impossible: no member but the base knows them.
        weights: [rows, pairs].

    >>> base, tuned, reference = torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    >>> compose_logits(base, [(tuned, reference)], torch.tensor([[0.5]])).tolist()
    [[0.5, 0.5, -inf]]
    >>> compose_logits(torch.tensor([[0.0, 1.0]]), [(torch.tensor([[2.0, 0.0]]), None)], torch.tensor([[0.5]])).tolist()
    [[1.0, 1.0]]
    """
    num_shared = base.shape[-1]
    for index, (tuned, reference) in enumerate(pairs):
        width = min(num_shared, *(logits.shape[-1] for logits in (tuned, reference) if logits is not None))
        base[:, width:num_shared] = -torch.inf
        num_shared = width
        delta = tuned[:, :width].float()
        if reference is not None:
            delta = delta - reference[:, :width]
        base[:, :width].addcmul_(delta, weights[:, index : index + 1])
    return base


PENALTY = 1e4
"""Taken off implausible tokens, in nats: none is drawn while a plausible one is allowed, and where vLLM forbids all of those behind
the composition, one is left.
"""


def implausible(base: Tensor, best: Tensor, shares: Tensor) -> Tensor:
    """What the base gives less than a share of its best token: a mask, [rows, vocab].

    Args:
        base: its logits, [rows, vocab], float32; -inf where a token is impossible.
        best: the best of them, [rows, 1]; of the whole vocabulary where `base` is a part of it.
        shares: [rows, 1], 0 to 1; 0 keeps all.

    >>> implausible(torch.tensor([[0.0, -1.0, -3.0]]), torch.tensor([[0.0]]), torch.tensor([[0.1]])).tolist()
    [[False, False, True]]
    """
    return base < best + shares.log()


def tokens_of_requests(rows: Tensor, query_start_loc: Tensor, positions: Tensor, out: Tensor) -> Tensor:
    """A row for every token: the row of the request that the token belongs to. Nothing waits for the device.

    Args:
        rows: [requests, pairs].
        query_start_loc: [requests + 1], where the tokens of each request begin in the batch, and where the last one's end.
        positions: [tokens], 0, 1, 2, ...
        out: [tokens, pairs], written and returned. Tokens behind the last request (padding) get the last request's row.

    >>> rows, starts = torch.tensor([[1.0], [2.0]]), torch.tensor([0, 3, 4])
    >>> tokens_of_requests(rows, starts, torch.arange(5), torch.empty(5, 1)).flatten().tolist()
    [1.0, 1.0, 1.0, 2.0, 2.0]
    """
    requests = torch.searchsorted(query_start_loc[1:].contiguous(), positions, right=True)
    return torch.index_select(rows, 0, requests.clamp_(max=rows.shape[0] - 1), out=out)
