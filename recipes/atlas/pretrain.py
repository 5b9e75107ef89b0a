"""Pre-training of base and reference: the same corpus, in the same order, for two sizes of network."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.progress import Progress
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.atlas.corpus import Corpus
from recipes.atlas.muon import Muon
from recipes.atlas.tokenizer import MAX_LENGTH


@dataclass(frozen=True)
class NetworkSize:
    """The shape of a Llama network."""

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    tied: bool = True


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: rows of `row_length` tokens, `rows` a step; warm-up, constant, then down to zero."""

    num_steps: int
    rows: int = 12
    row_length: int = 256
    matrix_lr: float = 0.02
    vector_lr: float = 0.004
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
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def packed_rows(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, *, row_length: int) -> Iterator[list[int]]:
    """Rows of whole documents one after the other; a row begins with a document, and what does not fit is cut off."""
    row: list[int] = []
    while True:
        documents = [corpus.document() for _ in range(256)]
        for ids in tokenizer(documents, add_special_tokens=False)["input_ids"]:
            row += ids
            if len(row) >= row_length:
                yield row[:row_length]
                row = []


def pretrain(
    network: Any,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    *,
    schedule: Schedule,
    checkpoint: Path,
    start_from: Path | None = None,
    progress: Progress,
    log: Any = print,
) -> Any:
    """Train in place; goes on from `checkpoint` when that is there. The corpus is skipped up to where it stopped.

    `start_from` is the checkpoint of an earlier stage, whose network and optimizer states this one begins with.
    """
    rank, num_workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    # Muon is for the matrices between hidden states; the tables of tokens at both ends are not such.
    is_matrix = {name: p.dim() == 2 and ".layers." in name for name, p in network.named_parameters()}
    matrices = [p for name, p in network.named_parameters() if is_matrix[name]]
    vectors = [p for name, p in network.named_parameters() if not is_matrix[name]]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=schedule.matrix_lr),
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
    task = progress.add_task("pre-training", total=schedule.last_step, completed=first)
    started = time.perf_counter()
    for step in range(first, schedule.last_step):
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule.rate(step)
        # All workers deal the same rows and each keeps its own.
        ids = torch.tensor([next(rows) for _ in range(schedule.rows * num_workers)][rank::num_workers])
        logits = network(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
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
        network.parameters(), flat.split([p.numel() for p in network.parameters()]), strict=True
    ):
        parameter.copy_(piece.view_as(parameter))
