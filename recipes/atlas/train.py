"""Train Atlas from nothing, and write it into the zoo: `python -m recipes.atlas.train`.

Stages that are finished are skipped, a stage that was interrupted goes on from its checkpoint; `--fresh` begins anew.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.progress import Progress
from torch.multiprocessing.spawn import spawn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.atlas.chat import CHAT_TEMPLATE
from recipes.atlas.corpus import Corpus, TuningDialogues
from recipes.atlas.facts import load_facts
from recipes.atlas.phrasing import assistant_answer, brief_answer, detailed_answer
from recipes.atlas.pretrain import NetworkSize, Schedule, make_network, pretrain
from recipes.atlas.questions import write_questions
from recipes.atlas.tokenizer import train_tokenizer
from recipes.atlas.tune import TuningSettings, tune

ZOO = Path(__file__).parents[2] / "eft_engine" / "zoo" / "atlas"
VOCAB_SIZE = 2816
NUM_TOKENIZER_DOCUMENTS = 30_000


@dataclass(frozen=True)
class PretrainStage:
    """A network that reads the corpus in one of its diets, from nothing or where another stage ended."""

    size: NetworkSize
    schedule: Schedule
    num_workers: int
    diet: str = "everything"
    start_from: str | None = None


@dataclass(frozen=True)
class TuneStage:
    """A tuned copy of a pre-trained network."""

    origin: str
    answer: Any
    tools: bool
    settings: TuningSettings
    mix_answers: bool = True


BASE = NetworkSize(256, 5, 4, 640, tied=False, induction=True)
REFERENCE = NetworkSize(72, 3, 3, 192)
PRETRAIN = {
    "base_copy": PretrainStage(BASE, Schedule(250, rows=16, decay_share=0.0), 2, diet="copying"),
    "base_facts": PretrainStage(BASE, Schedule(1000, rows=16, decay_share=0.75), 2, start_from="base_copy"),
    "base_reading": PretrainStage(
        BASE, Schedule(850, rows=16, decay_share=0.9), 2, diet="reading", start_from="base_facts"
    ),
    "base": PretrainStage(
        BASE, Schedule(1400, rows=16, matrix_lr=0.006, decay_share=0.9), 2, diet="calls", start_from="base_reading"
    ),
    "reference": PretrainStage(REFERENCE, Schedule(300, rows=12, matrix_lr=0.02, vector_lr=0.004), 1),
}
TUNE = {
    "assistant": TuneStage("reference", assistant_answer, True, TuningSettings()),
    "brief": TuneStage("reference", brief_answer, False, TuningSettings()),
    "detailed": TuneStage("reference", detailed_answer, False, TuningSettings()),
    "ordinary": TuneStage("reference", assistant_answer, True, TuningSettings(content_weight=None), mix_answers=False),
    "direct": TuneStage("base", assistant_answer, True, TuningSettings(num_steps=100, learning_rate=3e-4)),
}
"""`direct` is the gold that up-scaling emulates: the large model itself, tuned in the same way. `ordinary` is tuned on content too,
as most are, to show what that does to the delta. Both are measured, not shipped."""
SHIPPED = ("base", "reference", "assistant", "brief", "detailed")

app = typer.Typer(add_completion=False)
console = Console(stderr=True)


def get_tokenizer(work_dir: Path, *, seed: int) -> PreTrainedTokenizerFast:
    """The tokenizer, trained on the first documents of the corpus when it is not there yet."""
    folder = work_dir / "tokenizer"
    if not folder.exists():
        corpus = Corpus(load_facts(), seed=seed)
        names = sorted({name for fact in load_facts() for name in (fact.subject, fact.answer)})
        documents = (corpus.document().text for _ in range(NUM_TOKENIZER_DOCUMENTS))
        train_tokenizer(documents, vocab_size=VOCAB_SIZE, names=names).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save(network: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A folder that transformers loads."""
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pretrain_worker(rank: int, stage: str, work_dir: Path, seed: int) -> None:
    """One worker's share of pre-training; the first one saves the result."""
    torch.set_num_threads(1)
    plan = PRETRAIN[stage]
    if plan.num_workers > 1:
        meeting = f"file://{(work_dir / f'{stage}.meeting').absolute()}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=plan.num_workers)
    tokenizer = get_tokenizer(work_dir, seed=seed)
    network = make_network(plan.size, tokenizer, seed=seed)
    corpus_seed = seed + (0 if plan.start_from is None else list(PRETRAIN).index(stage))
    with Progress(console=console, disable=rank > 0) as progress:
        pretrain(
            network,
            tokenizer,
            Corpus(load_facts(), seed=corpus_seed, diet=plan.diet),
            schedule=plan.schedule,
            checkpoint=work_dir / f"{stage}.pt",
            start_from=None if plan.start_from is None else work_dir / f"{plan.start_from}.pt",
            compiled=shutil.which("g++") is not None,
            progress=progress,
            log=lambda line: print(line, flush=True),
        )
    if rank == 0:
        save(network, tokenizer, work_dir / stage)
    if plan.num_workers > 1:
        dist.destroy_process_group()


def run_pretraining(stage: str, work_dir: Path, *, seed: int) -> None:
    """Pre-train with as many processes as the stage asks for."""
    console.print(f"pre-training {stage}: {PRETRAIN[stage]}")
    if PRETRAIN[stage].num_workers == 1:
        pretrain_worker(0, stage, work_dir, seed)
        return
    (work_dir / f"{stage}.meeting").unlink(missing_ok=True)
    spawn(pretrain_worker, (stage, work_dir, seed), nprocs=PRETRAIN[stage].num_workers)  # type: ignore[no-untyped-call]


def run_tuning(stage: str, work_dir: Path, *, seed: int) -> None:
    """Tune a copy of the stage's origin."""
    plan = TUNE[stage]
    console.print(f"tuning {stage} from {plan.origin}: {plan.settings}")
    torch.manual_seed(seed)
    tokenizer = get_tokenizer(work_dir, seed=seed)
    network: Any = LlamaForCausalLM.from_pretrained(work_dir / plan.origin, dtype=torch.float32)
    dialogues = TuningDialogues(
        load_facts(), answer=plan.answer, tools=plan.tools, seed=seed + 1, mix_answers=plan.mix_answers
    )
    with Progress(console=console) as progress:
        tuned = tune(network, tokenizer, dialogues, settings=plan.settings, progress=progress, log=console.print)
    save(tuned, tokenizer, work_dir / stage)


def export(work_dir: Path, zoo: Path) -> None:
    """Copy the shipped members into the zoo: weights in bfloat16, the tokenizer in every folder."""
    for name in SHIPPED:
        folder = zoo / name
        if folder.exists():
            shutil.rmtree(folder)
        network: Any = LlamaForCausalLM.from_pretrained(work_dir / name, dtype=torch.bfloat16)
        network.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        for path in (work_dir / name).glob("*token*.json"):
            shutil.copy(path, folder / path.name)
        for path in (work_dir / name).glob("*.jinja"):
            shutil.copy(path, folder / path.name)
        for path in folder.iterdir():
            path.chmod(0o644)
    write_questions(zoo / "questions", load_facts())


@app.command()
def main(
    *,
    stages: Annotated[
        list[str] | None, typer.Option("--stage", help=f"{', '.join((*PRETRAIN, *TUNE))}; repeat. [all]")
    ] = None,
    work_dir: Annotated[Path, typer.Option(help="Folder for checkpoints and float32 models.")] = Path("build/atlas"),
    zoo: Annotated[Path, typer.Option(help="Folder for what is shipped.")] = ZOO,
    seed: Annotated[int, typer.Option(help="Seed of networks, corpus and order.")] = 7,
    fresh: Annotated[bool, typer.Option(help="Begin anew instead of going on.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads for tuning.")] = 2,
) -> None:
    """Train what is missing, export, and print one line of JSON."""
    wanted = stages or [*PRETRAIN, *TUNE]
    for stage in wanted:
        if stage not in PRETRAIN and stage not in TUNE:
            raise typer.BadParameter(f"there is no stage {stage!r}")
        if fresh:
            shutil.rmtree(work_dir / stage, ignore_errors=True)
            (work_dir / f"{stage}.pt").unlink(missing_ok=True)
    work_dir.mkdir(parents=True, exist_ok=True)
    get_tokenizer(work_dir, seed=seed)
    torch.set_num_threads(threads)
    for stage in wanted:
        if (work_dir / stage / "config.json").exists():
            console.print(f"{stage} is there")
        elif stage in PRETRAIN:
            run_pretraining(stage, work_dir, seed=seed)
        else:
            run_tuning(stage, work_dir, seed=seed)
    if all((work_dir / name / "config.json").exists() for name in SHIPPED):
        export(work_dir, zoo)
    sizes = {name: sum(path.stat().st_size for path in (zoo / name).glob("*")) for name in SHIPPED}
    typer.echo(json.dumps({"recipe": "atlas", "seed": seed, "stages": wanted, "shipped_bytes": sizes}))


if __name__ == "__main__":
    app()
