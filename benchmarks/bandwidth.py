"""The memory-bandwidth limit: decoding reads every weight once per forward pass, every cached key and value once per token."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch


def wait_for(device: torch.device) -> None:
    """Until everything that was queued on an accelerator is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def copy_bandwidth(device: torch.device, *, num_bytes: int = 2**29, repetitions: int = 9) -> float:
    """Bytes per second that a copy moves, read and written bytes together."""
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = []
    for _ in range(repetitions):
        wait_for(device)
        started = time.perf_counter()
        target.copy_(source)
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / statistics.median(seconds)


def weight_bytes(model: Any) -> int:
    """Bytes that one forward pass of few tokens reads: all weights, but of an untied input embedding only single rows."""
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    unread: int = 0 if embedding is output else embedding.nbytes
    total: int = sum(parameter.nbytes for parameter in model.parameters())
    return total - unread


def position_bytes(model: Any) -> int:
    """Bytes of keys and values that one cached position of one row has."""
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_values: int = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
    return num_values * int(model.dtype.itemsize)


def step_bytes(models: Iterable[Any], context_lens: Iterable[int]) -> int:
    """Bytes that one decode step of these models over rows with these contexts must read."""
    num_positions = sum(context_lens)
    return sum(weight_bytes(model) + num_positions * position_bytes(model) for model in models)
