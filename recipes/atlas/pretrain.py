"""Pre-training of base and reference: the same corpus, in the same order, for two sizes of network."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.progress import Progress
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.atlas.corpus import Corpus
from recipes.atlas.document import Document
from recipes.atlas.induction import begin_with_induction
from recipes.atlas.muon import Muon
from recipes.atlas.tokenizer import MAX_LENGTH

ANSWER_WEIGHT = 5.0
"""How much a token of an answer's content weighs as a target, against 1 for others."""
NUM_OPEN_ROWS = 32


@dataclass(frozen=True)
class NetworkSize:
    """The shape of a Llama network, and whether it begins with a pair of induction heads."""

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    tied: bool = True
    induction: bool = False


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: rows of `row_length` tokens, `rows` a step; warm-up, constant, then down to zero."""

    num_steps: int
    rows: int = 12
    row_length: int = 256
    matrix_lr: float = 0.01
    vector_lr: float = 0.002
    warm_up: int = 20
    decay_share: float = 0.5
    checkpoint_every: int = 50
    meet_every: int = 5
    stop_after: int | None = None

    @property
    def last_step(self) -> int:
        """Where the stage ends; before `num_steps` when another stage goes on from there."""
        return self.stop_after or self.num_steps

    def rate(self, step: int) -> float:
        """The factor on the learning rates at a step."""
        decay_start = self.num_steps * (1 - self.decay_share)
        down = (self.num_steps - step) / max(1.0, self.num_steps - decay_start)
        return min(1.0, (step + 1) / self.warm_up, down)


def make_network(size: NetworkSize, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Any:
    """A fresh network."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.mlp_width,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_heads,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=size.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    network = LlamaForCausalLM(config)
    if size.induction:
        begin_with_induction(network)
    return network


@dataclass(frozen=True)
class Row:
    """Whole documents one after the other, filled up: tokens, how much each weighs as a target, and the number of its document."""

    ids: list[int]
    weights: list[float]
    document: list[int]

    def add(self, ids: list[int], weights: list[float]) -> None:
        """Another document."""
        number = self.document[-1] + 1 if self.document else 0
        self.ids.extend(ids)
        self.weights.extend(weights)
        self.document.extend([number] * len(ids))

    def fill(self, length: int, pad: int) -> None:
        """Padding that no loss looks at."""
        missing = length - len(self.ids)
        self.add([pad] * missing, [0.0] * missing)


def weighted(documents: list[Document], tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[list[int], list[float]]]:
    """Token ids of each document, and how much each weighs as a target: nothing where it is unknown, more in answers."""
    encoded = tokenizer([item.text for item in documents], add_special_tokens=False, return_offsets_mapping=True)
    for item, ids, offsets in zip(documents, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        weights = [1.0] * len(ids)
        starts = [start for start, _ in offsets]
        spans = [(span, ANSWER_WEIGHT) for span in item.answers] + [(span, 0.0) for span in item.unknown]
        for (start, end), weight in spans:
            first, last = bisect_right(starts, start) - 1, bisect_left(starts, end)
            weights[first:last] = [weight] * (last - first)
        weights[0] = 0.0
        yield ids, weights


def packed_rows(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, *, row_length: int) -> Iterator[Row]:
    """Rows that hold whole documents, each put into the first open row with room; longer documents are left out."""
    open_rows: list[Row] = []
    while True:
        for ids, weights in weighted([corpus.document() for _ in range(256)], tokenizer):
            if len(ids) > row_length:
                continue
            room = next((row for row in open_rows if len(row.ids) + len(ids) <= row_length), None)
            if room is None:
                room = Row([], [], [])
                open_rows.append(room)
            room.add(ids, weights)
            if len(open_rows) > NUM_OPEN_ROWS:
                fullest = max(open_rows, key=lambda row: len(row.ids))
                open_rows.remove(fullest)
                fullest.fill(row_length, tokenizer.pad_token_id)
                yield fullest


def attention_mask(document: torch.Tensor) -> torch.Tensor:
    """[rows, 1, length, length]: 0 where a token sees another (an earlier one of its document), else a large negative number."""
    length = document.shape[1]
    seen = (document[:, :, None] == document[:, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
    return torch.where(seen, 0.0, -1e4)[:, None]


def product_dtype() -> torch.dtype:
    """bfloat16 on processors that multiply it, where it is several times as fast as float32; elsewhere float32."""
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def batch_loss(
    network: Any, ids: torch.Tensor, weights: torch.Tensor, mask: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Weighted mean of the cross-entropy of every token but the first; products in `dtype`, all else in float32."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = network(input_ids=ids, attention_mask=mask, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
    )
    counted = weights[:, 1:].flatten()
    return (losses * counted).sum() / counted.sum()


def pretrain(
    network: Any,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    *,
    schedule: Schedule,
    checkpoint: Path,
    start_from: Path | None = None,
    compiled: bool = False,
    progress: Progress,
    log: Any = print,
) -> Any:
    """Train in place; goes on from `checkpoint` when that is there. The corpus is skipped up to where it stopped.

    `start_from` is the checkpoint of an earlier stage, whose network and optimizer states this one begins with.
    """
    dtype = product_dtype()
    rank, num_workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    # Muon is for the matrices between hidden states; the tables of tokens at both ends are not such.
    is_matrix = {name: p.dim() == 2 and ".layers." in name for name, p in network.named_parameters()}
    matrices = [p for name, p in network.named_parameters() if is_matrix[name]]
    vectors = [p for name, p in network.named_parameters() if not is_matrix[name]]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=schedule.matrix_lr, dtype=dtype),
        torch.optim.AdamW(vectors, lr=schedule.vector_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rates = (schedule.matrix_lr, schedule.vector_lr)
    rows = packed_rows(corpus, tokenizer, row_length=schedule.row_length)
    first = 0
    found = checkpoint if checkpoint.exists() else start_from
    if found is not None:
        saved = torch.load(found, weights_only=True)
        network.load_state_dict(saved["network"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        first = int(saved["step"]) if found == checkpoint else 0
        for _ in range(first * schedule.rows * num_workers):
            next(rows)
    network.train()
    loss_of = torch.compile(batch_loss) if compiled else batch_loss
    task = progress.add_task("pre-training", total=schedule.last_step, completed=first)
    started = time.perf_counter()
    for step in range(first, schedule.last_step):
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule.rate(step)
        # All workers deal the same rows and each keeps its own.
        mine = [next(rows) for _ in range(schedule.rows * num_workers)][rank::num_workers]
        ids = torch.tensor([row.ids for row in mine])
        mask = attention_mask(torch.tensor([row.document for row in mine]))
        loss = loss_of(network, ids, torch.tensor([row.weights for row in mine]), mask, dtype)
        torch.autograd.backward(loss)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if num_workers > 1 and ((step + 1) % schedule.meet_every == 0 or step + 1 == schedule.last_step):
            average_parameters(network)
        progress.update(task, advance=1, description=f"pre-training, loss {loss.item():.3f}")
        if rank == 0 and (step + 1) % 10 == 0:
            speed = (step + 1 - first) * ids.numel() * num_workers / (time.perf_counter() - started)
            log(f"step {step + 1} of {schedule.last_step}: loss {loss.item():.3f}, {speed:.0f} tokens/s")
        if rank == 0 and ((step + 1) % schedule.checkpoint_every == 0 or step + 1 == schedule.last_step):
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            torch.save(
                {"network": network.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step + 1},
                checkpoint.with_suffix(".part"),
            )
            checkpoint.with_suffix(".part").rename(checkpoint)
    return network.eval()


@torch.no_grad()
def average_parameters(network: Any) -> None:
    """The mean over the workers, as one message. Workers that meet rarely need not wait for one another at every step."""
    flat = torch.cat([parameter.flatten() for parameter in network.parameters()])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for parameter, piece in zip(
        network.parameters(), torch.split(flat, [p.numel() for p in network.parameters()]), strict=True
    ):
        parameter.copy_(piece.view_as(parameter))
