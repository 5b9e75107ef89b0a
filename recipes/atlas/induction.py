"""Weights to begin with in which a few pairs of heads already look up what followed a token: induction, put in by hand.

Heads of the first block look one, two and three tokens back and write what they see beside the token; heads of the second
block look for places that have the present token (or the one before, or the one before that) written beside them, and fetch
what stands there. Olsson et al. 2022 (arXiv 2209.11895) found such pairs in trained networks. Two heads that are of use only
together take a network long to find by itself; two and three tokens back matter because separators and spaces stand between
names. Training is free to change all of it.
"""

from __future__ import annotations

from typing import Any

import torch

SPREAD = 0.5
"""Standard deviation of the embeddings; with transformers' 0.02, a few steps of Adam would write all of this over."""
SHARED = 0.5
"""Length of the component that all token embeddings share, by the length of what they do not share."""
SHARPNESS = 8.0
"""By how many nats the wanted position outweighs its neighbours, or a match a stranger, roughly, in the scores of attention."""
NUM_PAIRS = 3
"""Pairs of heads; the last head of both blocks stays as it was drawn."""
WRITTEN = 0.75
"""Length in which a head's findings are written, for a token of length 1."""
ECHO = 0.5
"""How strongly the output layer reads what the second block has fetched; near 10 nats for a token that followed a match."""


@torch.no_grad()
def begin_with_induction(network: Any) -> None:
    """Overwrite both tables of tokens and the first heads of the first two blocks; every other output of a block begins at zero."""
    model, config = network.model, network.config
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    for layer in model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    table = model.embed_tokens.weight
    table.normal_(std=SPREAD)
    table[:, 0] = SHARED * SPREAD * width**0.5
    num_compared = int(slow_dimensions(size).sum())
    directions = torch.zeros(width, 2 * size + NUM_PAIRS * num_compared)
    directions[1:] = torch.linalg.qr(torch.randn(width - 1, directions.shape[1])).Q
    read, fetched, *notes = torch.split(
        directions, [size, size, *[num_compared] * NUM_PAIRS], dim=1
    )  # [width, so many]
    seen = [read[:, :num_compared], *notes]
    first, second = model.layers[0].self_attn, model.layers[1].self_attn
    shared = SHARED * (width / (1 + SHARED**2)) ** 0.5
    for index in range(NUM_PAIRS):
        head = slice(index * size, (index + 1) * size)
        look_back(first, head, size, positions=index + 1, shared=shared)
        carry(first, head, source=seen[0], target=notes[index])
        look_up(second, head, size, wanted=seen[index], written=seen[index + 1])
        carry(second, head, source=read, target=fetched)
    network.lm_head.weight.copy_(ECHO * table @ read @ fetched.T)


def frequencies(size: int) -> torch.Tensor:
    """Radians a position by which RoPE turns each of `size` / 2 pairs of dimensions (base 10,000)."""
    return 10_000.0 ** (-torch.arange(size // 2) * 2 / size)


def slow_dimensions(size: int) -> torch.Tensor:
    """Which dimensions of a head RoPE hardly turns within a passage; contents are compared in these."""
    return (frequencies(size) < 0.01).repeat(2)


def look_back(attention: Any, head: slice, size: int, *, positions: int, shared: float) -> None:
    """The head looks `positions` back: its keys are the same everywhere, its queries are too, but turned back so far.

    `shared` is the first dimension of a normalised token. The fast pairs of dimensions tell neighbours apart.
    """
    turns = frequencies(size)
    is_fast = (turns > 0.1).float()
    gain = (SHARPNESS * size**0.5 / float((is_fast * (1 - turns.cos())).sum())) ** 0.5 / shared
    key = torch.cat([is_fast, torch.zeros(size // 2)])
    query = torch.cat([is_fast * (positions * turns).cos(), -is_fast * (positions * turns).sin()])
    for projection, pattern in ((attention.k_proj, key), (attention.q_proj, query)):
        projection.weight[head] = 0.0
        projection.weight[head, 0] = gain * pattern


def carry(attention: Any, head: slice, *, source: torch.Tensor, target: torch.Tensor) -> None:
    """The head takes what a token has in the directions `source` [width, n] and writes it in `target` [width, n]."""
    begin, num = head.start, source.shape[1]
    attention.v_proj.weight[begin : begin + num] = source.T
    attention.o_proj.weight[:, begin : begin + num] = WRITTEN * target


def look_up(attention: Any, head: slice, size: int, *, wanted: torch.Tensor, written: torch.Tensor) -> None:
    """The head compares what the present token has in `wanted` [width, n] with what earlier ones have in `written` [width, n]."""
    slow = slow_dimensions(size)
    # Of a normalised token each such direction has about 0.85; a match is the sum of their squares.
    gain = (SHARPNESS * size**0.5 / (0.85**2 * wanted.shape[1])) ** 0.5
    for projection, directions in ((attention.q_proj, wanted), (attention.k_proj, written)):
        rows = torch.zeros(size, directions.shape[0])
        rows[slow] = gain * directions.T
        projection.weight[head] = rows
