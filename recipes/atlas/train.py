"""Train the Atlas trio from nothing: `python -m recipes.atlas.train`. Every stage goes on from its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedTokenizerFast

from recipes.atlas.corpus import Corpus
from recipes.atlas.facts import load_facts
from recipes.atlas.pretrain import NetworkSize, Schedule, make_network, pretrain
from recipes.atlas.tokenizer import train_tokenizer

VOCAB_SIZE = 2048
SIZES = {"base": NetworkSize(288, 4, 6, 768, tied=False), "reference": NetworkSize(96, 4, 3, 256)}
app = typer.Typer(add_completion=False)
console = Console(stderr=True)


def get_tokenizer(work_dir: Path, *, seed: int) -> PreTrainedTokenizerFast:
    """The tokenizer, trained on the first documents of the corpus when it is not there yet."""
    folder = work_dir / "tokenizer"
    if not folder.exists():
        corpus = Corpus(load_facts(), seed=seed)
        train_tokenizer((corpus.document() for _ in range(30_000)), vocab_size=VOCAB_SIZE).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def train_network(rank: int, stage: str, steps: int, rows: int, workers: int, work_dir: Path, seed: int) -> None:
    """One worker's share of pre-training; the first one saves the result."""
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{(work_dir / (stage + '.meeting')).absolute()}", rank=rank, world_size=workers
        )
    tokenizer = get_tokenizer(work_dir, seed=seed)
    network: Any = make_network(SIZES[stage], tokenizer, seed=seed)
    if rank == 0:
        print(stage, sum(p.numel() for p in network.parameters()), len(load_facts()), flush=True)
    with Progress(console=console, disable=rank > 0) as progress:
        pretrain(
            network, tokenizer, load_facts(), schedule=Schedule(steps, rows=rows), seed=seed,
            checkpoint=work_dir / f"{stage}.pt", progress=progress, log=lambda s: print(s, flush=True),
        )  # fmt: skip
    if rank == 0:
        network.save_pretrained(work_dir / stage)
        tokenizer.save_pretrained(work_dir / stage)


@app.command()
def main(
    *,
    stage: Annotated[str, typer.Option()] = "base",
    steps: Annotated[int, typer.Option()] = 1200,
    rows: int = 12,
    workers: int = 1,
    work_dir: Annotated[Path, typer.Option()] = Path("build/atlas"),
    seed: int = 7,
) -> None:
    get_tokenizer(work_dir, seed=seed)
    if workers == 1:
        train_network(0, stage, steps, rows, 1, work_dir, seed)
    else:
        (work_dir / f"{stage}.meeting").unlink(missing_ok=True)
        torch.multiprocessing.spawn(train_network, (stage, steps, rows, workers, work_dir, seed), nprocs=workers)


if __name__ == "__main__":
    app()
