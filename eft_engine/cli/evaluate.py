"""`eft eval`: a trio on your own questions at several weights: which is right for you, and does up-scaling help at all?

`--tune` finds the weight or schedule, and writes the composition file that `eft serve --config` reads.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from eft_engine.cli import trio_options as options
from eft_engine.cli.composition_file import write_composition
from eft_engine.config import CompositionOptions, SamplingParams
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.questions import load_questions
from eft_engine.evaluation.report import summary, write_report
from eft_engine.evaluation.run import WeightResult, Weights
from eft_engine.evaluation.run import evaluate as run_evaluation
from eft_engine.evaluation.scorers import ExactMatch, Judge, PatternMatch, SchemaMatch, Scorer
from eft_engine.evaluation.tuning import CANDIDATES, Tuning
from eft_engine.evaluation.tuning import tune as run_tuning

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
            "--weight",
            "-w",
            help="A setting: NUMBER, a schedule in JSON, or NAME=WEIGHT,NAME=WEIGHT; repeat. [0, 0.5, 1, 1.5, 2]",
            metavar="SETTING",
        ),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Find the best setting: all try a few questions, the better half goes on.")
    ] = False,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            help="With --tune: a setting to try, written like --weight; repeat. [weights from 0.1 to 2, gates and others]",
            metavar="SETTING",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="With --tune: write the composition that was found to a .json or .yaml file for `eft serve --config`."
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
    prompt_pair: options.PromptPairs = None,
    positive: options.Positive = None,
    negative: options.Negative = None,
    min_plausibility: options.MinPlausibility = 0.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for report.md, answers.jsonl and a plot.")] = None,
    as_json: options.Json = False,
) -> None:
    """Measure a trio on a question file at several weights, or find the right one; the last line is JSON."""
    _check_way(tune=tune, weight=weight, candidate=candidate, output=output)
    asked = load_questions(questions)[:limit]
    formula = options.formula(prompt_pair, positive=positive, negative=negative, min_plausibility=min_plausibility)
    formula = formula.model_copy(update={"amplification": amplification, "conservative_top_p": conservative_top_p})
    texts = candidate if tune else (weight or ("0", "0.5", "1", "1.5", "2"))
    settings = CANDIDATES if texts is None else [parse_setting(text) for text in texts]
    settings = [for_pairs(setting, choice.pairs, formula) for setting in settings]
    scorers = [
        make_scorer(name, pattern=pattern, schema=schema, judge=judge, criterion=criterion)
        for name in dict.fromkeys(scorer or default_scorers(pattern=pattern, schema=schema, judge=judge))
    ]
    sampling = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
    found: Tuning | None = None
    with options.load_engine(choice) as engine, Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"answering {len(asked)} questions", total=None if tune else len(settings))

        def advance(result: WeightResult) -> None:
            progress.update(task, advance=1, description=f"answered {len(asked)} questions at {result.label}")

        def advance_tuning(done: int, planned: int, label: str) -> None:
            progress.update(task, completed=done, total=planned, description=f"{done} of {planned} answers, {label}")

        if tune:
            found = run_tuning(
                engine,
                asked,
                scorers=scorers,
                sampling=sampling,
                candidates=settings,
                off=base_alone(choice.pairs, formula),
                composition=formula,
                on_answers=advance_tuning,
            )
            results = list(found.results)
        else:
            results = run_evaluation(
                engine,
                asked,
                scorers=scorers,
                weights=settings,
                sampling=sampling,
                composition=formula,
                on_result=advance,
            )
    if report is not None:
        write_report(report, asked if found is None else found.questions, results)
    if output is not None and found is not None:
        write_composition(output, choice, formula, found.best.weights)
    if not as_json:
        out = options.console()
        out.print(_table(results, len(asked), None if found is None else found.best))
        for warning in () if found is None else found.warnings:
            out.print(f"warning: {warning}")
        for path in (report and report / "report.md", output):
            if path is not None:
                out.print(f"written: {path}")
    told = summary(results)
    if found is not None:
        told |= {"best": found.best.label, "finalists": list(found.finalists), "warnings": list(found.warnings)}
    options.print_json(told)


def _check_way(*, tune: bool, weight: object, candidate: object, output: Path | None) -> None:
    if tune and weight:
        raise InvalidOptionError("--weight measures settings and --tune finds one; name what it tries with --candidate")
    if not tune and (candidate or output):
        name = "--candidate" if candidate else "--output"
        raise InvalidOptionError(f"{name} belongs to --tune; add it", option=name.strip("-"))
    if output is not None and output.suffix not in (".json", ".yaml", ".yml"):
        raise InvalidOptionError(
            f"--output must end in .json, .yaml or .yml, got {str(output)!r}", option="output", value=str(output)
        )


def for_pairs(setting: Weights, pairs: Mapping[str, object], formula: CompositionOptions) -> Weights:
    """A setting as the engine takes it: where there are only prompt pairs, one weight is for these."""
    if pairs or not formula.prompt_pairs or isinstance(setting, Mapping) or setting is None:
        return setting
    return dict.fromkeys(formula.prompt_pairs, setting)


def base_alone(pairs: Mapping[str, object], formula: CompositionOptions) -> Weights:
    """Weight 0 for everything; where there are prompt pairs, by name, since one weight does not mean them."""
    return dict.fromkeys([*pairs, *formula.prompt_pairs], 0.0) if formula.prompt_pairs else 0.0


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
    """`0.5` for every pair, a schedule in JSON, or `brief=0.25,detailed=0.75`.

    >>> parse_setting("0.5"), parse_setting("brief=0.25,detailed=0.75")
    (0.5, {'brief': 0.25, 'detailed': 0.75})
    """
    weights = options.parse_weights(options.split_weights(text))
    if weights is None:
        raise InvalidOptionError("a setting must not be empty; give a number", option="weight", value=text)
    return weights


def _table(results: list[WeightResult], num_questions: int, best: WeightResult | None) -> Table:
    table = Table(title=f"{num_questions} questions, shares with 95 % intervals")
    scorers = list(results[0].marks)
    further = ("asked", "changed") if best else ("tokens", "cut", "tokens/s", "drafts accepted")
    for heading in ("weight", *scorers, "steered", *further):
        table.add_column(heading, justify="right", overflow="fold")
    for result in results:
        accepted = "-" if result.acceptance_rate is None else f"{result.acceptance_rate:.0%}"
        shares = [str(result.share(name)) for name in scorers]
        changed = "-" if result.changed is None else f"{result.changed.value:.0%}"
        told = (f"{result.mean_tokens:.1f}", f"{result.cut.value:.0%}", f"{result.tokens_per_s:.0f}", accepted)
        label = f"{result.label} (best)" if best and result.label == best.label else result.label
        of_tuning = (str(len(result.answers)), changed)
        table.add_row(label, *shares, f"{result.steered:.0%}", *(of_tuning if best else told))
    return table
