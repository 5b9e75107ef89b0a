"""Up-scaling with public models of two sizes: Qwen2.5-Coder-Instruct 1.5B (base) and 0.5B (reference).

    make real-trio                                          # fetches the models where they are not, and prints their paths
    python -m benchmarks.real_trio data data                # the training files of both forms
    eft tune data/steps.jsonl --reference qwen05.gguf --out adapters/steps
    python -m benchmarks.real_trio ask base reference steps.alone steps@1 --adapters adapters
    python -m benchmarks.real_trio report                   # shares with intervals, gap closed, gained and lost, cost

`--base` and `--reference` are GGUF files, folders or hub ids. Everything is greedy; a stopped run goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.real_trio import asking, forms, questions
from benchmarks.real_trio import report as reporting
from benchmarks.real_trio.asking import Models, Setting
from benchmarks.real_trio.fetch import BASE, REFERENCE, cache_folder, fetch_all
from benchmarks.report import finish

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)
SETS = {"heart": questions.by_heart, "passages": questions.from_passages}
Out = Annotated[Path, typer.Option(help="Folder of the answers.")]


@app.command()
def fetch() -> None:
    """Fetch, join and cache both models, outside of the repository."""
    for path in fetch_all(cache_folder()):
        typer.echo(path)


@app.command()
def data(folder: Annotated[Path, typer.Argument(help="Where the training files go.")]) -> None:
    """Write the training files of both forms, each with a held-out part."""
    for path in forms.write_training_files(folder):
        typer.echo(path)


@app.command()
def ask(
    settings: Annotated[list[str], typer.Argument(help="base, reference, ADAPTER.alone, ADAPTER@WEIGHT[+VARIANT].")],
    base: Annotated[str | None, typer.Option(help="The large model.", show_default="the cached one")] = None,
    reference: Annotated[str | None, typer.Option(help="The small model.", show_default="the cached one")] = None,
    adapters: Annotated[Path, typer.Option(help="Folder that has the adapters by name.")] = Path("adapters"),
    out: Out = Path("build/real_trio"),
    asked: Annotated[str, typer.Option("--set", help=f"Which questions: {', '.join(SETS)}.")] = "heart",
    limit: Annotated[int | None, typer.Option(help="Only the first so many.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of llama.cpp.")] = 2,
    rows: Annotated[int, typer.Option(help="Requests in flight together.")] = 32,
) -> None:
    """Ask the questions at settings; what is in the files is not asked again."""
    models = Models(
        base or str(cache_folder() / BASE.file),
        reference or str(cache_folder() / REFERENCE.file),
        adapters,
        threads,
        rows,
    )
    asking.ask(
        models,
        [Setting(label) for label in settings],
        SETS[asked]()[:limit],
        out,
        set_name=asked,
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )


@app.command()
def report(
    out: Out = Path("build/real_trio"),
    failures: Annotated[int, typer.Option(help="Wrong answers of each setting to print.")] = 0,
) -> None:
    """Print a table for each set of questions, in Markdown; the last line is JSON."""
    told = {}
    for name, made in SETS.items():
        found = reporting.rows(out / name, made())
        if not found:
            continue
        typer.echo(f"## {name}\n\n{reporting.markdown(found)}\n")
        told[name] = reporting.as_json(found)
        for row in found if failures else ():
            wrong = [own for own, right in zip(row.answers, row.right, strict=True) if not right][:failures]
            for answer in wrong:
                typer.echo(f"{row.label}: {answer.question!r}\n    {answer.text!r}")
    finish("real_trio", told)


if __name__ == "__main__":
    app()
