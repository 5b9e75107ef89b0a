"""`eft eval`: a trio on your own questions at several weights: which is right for you, and does up-scaling help at all?"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from eft_engine.cli import trio_options as options
from eft_engine.config import CompositionOptions, SamplingParams
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.questions import load_questions
from eft_engine.evaluation.report import summary, write_report
from eft_engine.evaluation.run import WeightResult, Weights
from eft_engine.evaluation.run import evaluate as run_evaluation
from eft_engine.evaluation.scorers import ExactMatch, Judge, PatternMatch, SchemaMatch, Scorer

SCORERS = ("exact", "contains", "regex", "schema", "judge")


@options.takes_trio
def evaluate(
    questions: Annotated[
        Path, typer.Argument(help="JSON Lines: question (or messages, or prompt), answers, pattern, group.")
    ],
    choice: options.TrioChoice,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight", "-w", help="A setting: NUMBER or NAME=NUMBER,NAME=NUMBER; repeat. [0, 0.5, 1, 1.5, 2]"
        ),
    ] = None,
    scorer: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(SCORERS)}; repeat for several. [contains]")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="Regular expression that the whole answer must match.")] = None,
    schema: Annotated[Path | None, typer.Option(help="File with the JSON schema of an answer.")] = None,
    judge: Annotated[
        str | None, typer.Option(help="MODULE:NAME of a chat model, or of something that makes one when called.")
    ] = None,
    criterion: Annotated[str, typer.Option(help="What the judge is asked about an answer.")] = "Is the answer correct?",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer; longer ones are cut, and counted.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy and repeatable.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed of every answer.")] = None,
    amplification: Annotated[float, typer.Option(help="Factor on the direction base - reference.")] = 1.0,
    conservative_top_p: Annotated[
        float | None, typer.Option(help="Keep the tuned model outside of its nucleus.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for report.md, answers.jsonl and a plot.")] = None,
    as_json: options.Json = False,
) -> None:
    """Measure a trio on a question file at several weights; the last line is JSON."""
    asked = load_questions(questions)[:limit]
    settings = [parse_setting(text) for text in weight or ("0", "0.5", "1", "1.5", "2")]
    scorers = [
        make_scorer(name, pattern=pattern, schema=schema, judge=judge, criterion=criterion)
        for name in dict.fromkeys(scorer or default_scorers(pattern=pattern, schema=schema, judge=judge))
    ]
    with options.load_engine(choice) as engine, Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"answering {len(asked)} questions", total=len(settings))

        def advance(result: WeightResult) -> None:
            progress.update(task, advance=1, description=f"answered {len(asked)} questions at {result.label}")

        results = run_evaluation(
            engine,
            asked,
            scorers=scorers,
            weights=settings,
            sampling=SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed),
            composition=CompositionOptions(amplification=amplification, conservative_top_p=conservative_top_p),
            on_result=advance,
        )
    if report is not None:
        write_report(report, asked, results)
    if not as_json:
        out = options.console()
        out.print(_table(results, len(asked)))
        if report is not None:
            out.print(f"report: {report / 'report.md'}")
    options.print_json(summary(results))


def default_scorers(*, pattern: str | None, schema: Path | None, judge: str | None) -> list[str]:
    """The scorers that the given options are for; without any, whether the expected answer occurs."""
    given = [name for name, value in (("regex", pattern), ("schema", schema), ("judge", judge)) if value is not None]
    return given or ["contains"]


def make_scorer(name: str, *, pattern: str | None, schema: Path | None, judge: str | None, criterion: str) -> Scorer:
    """The scorer of a name.

    Raises:
        InvalidOptionError: there is none of this name, or its option is missing or wrong.
    """
    if name == "exact":
        return ExactMatch()
    if name == "contains":
        return ExactMatch(anywhere=True, name="contains")
    if name == "regex":
        return PatternMatch(pattern)
    if name == "schema":
        if schema is None:
            raise InvalidOptionError("the schema scorer needs --schema FILE", option="schema")
        try:
            return SchemaMatch(json.loads(schema.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InvalidOptionError(f"cannot read the schema {schema}: {error}", option="schema") from None
    if name == "judge":
        if judge is None:
            raise InvalidOptionError("the judge scorer needs --judge MODULE:NAME, for example my_judge:model")
        return Judge(load_judge(judge), criterion)
    raise InvalidOptionError(f"there is no scorer {name!r}; scorers: {', '.join(SCORERS)}", option="scorer", value=name)


def load_judge(name: str) -> Any:
    """The chat model that MODULE:NAME means; a class or function is called without arguments.

    Raises:
        InvalidOptionError: it cannot be imported, or what was found cannot be asked.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidOptionError(
            f"cannot load the judge {name!r} ({error}); write MODULE:NAME, for example my_judge:model",
            option="judge",
            value=name,
        ) from None
    model = found() if isinstance(found, type) or not hasattr(found, "invoke") else found
    if not hasattr(model, "invoke"):
        raise InvalidOptionError(
            f"the judge {name!r} is a {type(model).__name__} without invoke(); give a LangChain chat model",
            option="judge",
            value=name,
        )
    return model


def parse_setting(text: str) -> Weights:
    """`0.5` for every pair, or `brief=0.25,detailed=0.75`.

    >>> parse_setting("0.5"), parse_setting("brief=0.25,detailed=0.75")
    (0.5, {'brief': 0.25, 'detailed': 0.75})
    """
    weights = options.parse_weights(text.split(","))
    assert weights is not None
    return weights


def _table(results: list[WeightResult], num_questions: int) -> Table:
    table = Table(title=f"{num_questions} questions, shares with 95 % intervals")
    scorers = list(results[0].marks)
    for heading in ("weight", *scorers, "tokens", "cut", "tokens/s", "drafts accepted"):
        table.add_column(heading, justify="right")
    for result in results:
        accepted = "-" if result.acceptance_rate is None else f"{result.acceptance_rate:.0%}"
        shares = [str(result.share(name)) for name in scorers]
        lengths = (f"{result.mean_tokens:.1f}", f"{result.cut.value:.0%}")
        table.add_row(result.label, *shares, *lengths, f"{result.tokens_per_s:.0f}", accepted)
    return table
