"""Judge the engine with every family of transformers.

python -m tests.survey [--only llama,qwen3] [--jobs 2] [--limit 60] [--report FILE] [--write]
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.survey.cases import all_cases
from tests.survey.judge import Verdict
from tests.survey.page import page
from tests.survey.workers import verdicts

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def main(
    *,
    only: Annotated[str, typer.Option(help="entries, separated by commas, with all their variants; empty: all")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="processes beside each other")] = 2,
    limit: Annotated[float, typer.Option(help="seconds for one case")] = 60.0,
    report: Annotated[Path | None, typer.Option(help="a file for one line per case")] = None,
    write: Annotated[bool, typer.Option("--write", help="write docs/models.md (or --page)")] = False,
    to: Annotated[Path, typer.Option("--page", help="the page that --write writes")] = PAGE,
) -> None:
    """Judge, summarise, and write the page. The exit status is 1 where a text was wrong, an error untyped, or a model changed."""
    wanted = {name.strip() for name in only.split(",") if name.strip()}
    cases = all_cases()
    unknown = wanted - {case.entry for case in cases.values()} - set(cases)
    if unknown or (write and wanted):
        raise typer.BadParameter(
            f"no entries {', '.join(sorted(unknown))}" if unknown else "--write is for the whole survey"
        )
    names = [case.name for case in cases.values() if not wanted or wanted & {case.entry, case.name}]
    found: dict[str, Verdict] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("survey", total=len(names))
        for verdict in verdicts(names, jobs=jobs, limit_s=limit):
            found[verdict.name] = verdict
            progress.update(task, advance=1, description=f"{verdict.name}: {verdict.kind}")
    lines = [f"{found[name].kind} | {name} | {found[name].detail} | {found[name].seconds:.1f} s" for name in names]
    if report is not None:
        report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if write:
        to.write_text(page(found), encoding="utf-8")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for kind in ("cannot be built", "refused", "LEFT BEHIND", "UNTYPED", "WRONG"):
        for line in lines:
            if line.startswith(f"{kind} |"):
                console.print(line)
    counts = Counter(verdict.kind for verdict in found.values())
    console.print(", ".join(f"{number} {kind}" for kind, number in counts.most_common()))
    raise typer.Exit(code=int(bool(counts["WRONG"] or counts["UNTYPED"] or counts["LEFT BEHIND"])))


if __name__ == "__main__":
    typer.run(main)
