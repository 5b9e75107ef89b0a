"""The peers: the three-model loop of the research code, and transformers' own generation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch


@torch.inference_mode()
def naive_loop(
    models: Sequence[Any], prompt_ids: list[int], *, weight: float, max_tokens: int
) -> tuple[list[int], float]:
    """Greedy composition with a transformers cache per model, one token at a time; returns tokens and seconds."""
    started = time.perf_counter()
    caches: list[Any] = [None] * len(models)
    fed = torch.tensor([prompt_ids])
    token_ids: list[int] = []
    for _ in range(max_tokens):
        rows = []
        for index, model in enumerate(models):
            out = model(fed, past_key_values=caches[index], use_cache=True, logits_to_keep=1)
            caches[index] = out.past_key_values
            rows.append(out.logits[0, -1].log_softmax(dim=-1))
        base, tuned, reference = rows
        token_ids.append(int((base + weight * (tuned - reference)).argmax()))
        fed = torch.tensor([[token_ids[-1]]])
    return token_ids, time.perf_counter() - started


@torch.inference_mode()
def transformers_generate(
    model: Any, prompt_ids: list[int], *, max_tokens: int, **options: Any
) -> tuple[list[int], float]:
    """Greedy `generate` of one model alone; returns tokens and seconds."""
    started = time.perf_counter()
    out = model.generate(
        torch.tensor([prompt_ids]),
        attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
        do_sample=False,
        min_new_tokens=max_tokens,
        max_new_tokens=max_tokens,
        pad_token_id=0,
        **options,
    )
    return out[0, len(prompt_ids) :].tolist(), time.perf_counter() - started
