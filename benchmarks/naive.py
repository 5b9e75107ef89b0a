"""The peers: the three-model loop of the research code, and transformers' own generation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PeerRun:
    """Generated tokens per prompt, seconds of the whole call, and seconds per token after the first ones."""

    token_ids: list[list[int]]
    seconds: float
    step_s: float


def left_padded(prompts: Sequence[Sequence[int]], device: Any = "cpu") -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, `[prompts, longest]`."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@torch.inference_mode()
def naive_batch(models: Sequence[Any], prompts: Sequence[Sequence[int]], *, weight: float, max_tokens: int) -> PeerRun:
    """Greedy composition with a transformers cache per model, one step at a time, prompts padded on the left."""
    started = first = time.perf_counter()
    caches: list[Any] = [None] * len(models)
    fed, mask = left_padded(prompts, models[0].device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    chosen: list[Tensor] = []
    for step in range(max_tokens):
        rows = []
        for index, model in enumerate(models):
            padding = {"attention_mask": mask} if len(prompts) > 1 else {}
            out = model(
                fed, past_key_values=caches[index], position_ids=positions, use_cache=True, logits_to_keep=1, **padding
            )
            caches[index] = out.past_key_values
            rows.append(out.logits[:, -1].float().log_softmax(dim=-1))
        base, tuned, reference = rows
        fed = (base + weight * (tuned - reference)).argmax(dim=-1, keepdim=True)
        chosen.append(fed)
        fed.tolist()  # a loop that streams its text waits for every token
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(fed)], dim=-1)
        if step == 0:
            first = time.perf_counter()
    ended = time.perf_counter()
    return PeerRun(torch.cat(chosen, dim=-1).tolist(), ended - started, (ended - first) / max(max_tokens - 1, 1))


def naive_loop(
    models: Sequence[Any], prompt_ids: Sequence[int], *, weight: float, max_tokens: int
) -> tuple[list[int], float]:
    """`naive_batch` of one prompt; returns tokens and seconds."""
    run = naive_batch(models, [prompt_ids], weight=weight, max_tokens=max_tokens)
    return run.token_ids[0], run.seconds


@torch.inference_mode()
def transformers_batch(model: Any, prompts: Sequence[Sequence[int]], *, max_tokens: int, **options: Any) -> PeerRun:
    """Greedy `generate` of one model, prompts padded on the left; `step_s` is 0, as it does not say when tokens come."""
    started = time.perf_counter()
    ids, mask = left_padded(prompts, model.device)
    out = model.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        min_new_tokens=max_tokens,
        max_new_tokens=max_tokens,
        pad_token_id=0,
        **options,
    )
    token_ids = out[:, ids.shape[1] :].tolist()
    return PeerRun(token_ids, time.perf_counter() - started, 0.0)


def transformers_generate(
    model: Any, prompt_ids: Sequence[int], *, max_tokens: int, **options: Any
) -> tuple[list[int], float]:
    """`transformers_batch` of one prompt; returns tokens and seconds."""
    run = transformers_batch(model, [prompt_ids], max_tokens=max_tokens, **options)
    return run.token_ids[0], run.seconds
