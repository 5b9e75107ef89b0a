"""`eft eval`: a trio on your own questions at several weights: which is right for you, and does up-scaling help at all?

`--tune` finds the weight or schedule, and writes the composition file that `eft serve --config` reads. With `--report` every answer
is in the folder as soon as it is given, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from eft_engine.cli import trio_options as options
from eft_engine.cli.composition_file import write_composition
from eft_engine.cli.evaluate_progress import EvaluationProgress, Signals, StoppedBySignal
from eft_engine.cli.evaluate_settings import (
    SCORERS,
    base_alone,
    choose_members,
    default_scorers,
    for_pairs,
    make_scorer,
    parse_setting,
)
from eft_engine.cli.evaluate_tables import print_tables
from eft_engine.config import SamplingParams
from eft_engine.errors import EFTError, InvalidOptionError
from eft_engine.evaluation.answer_log import AnswerLog, open_log
from eft_engine.evaluation.cut import cut_warnings
from eft_engine.evaluation.fitting import fitting
from eft_engine.evaluation.identity import facts_of
from eft_engine.evaluation.plot import check_plots
from eft_engine.evaluation.question_file import QuestionFile, read_questions
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.report import summary, write_report
from eft_engine.evaluation.results import WeightResult
from eft_engine.evaluation.run import Evaluation, evaluate_settings
from eft_engine.evaluation.settings import Setting, Weights
from eft_engine.evaluation.templates import template_differences
from eft_engine.evaluation.tuning import CANDIDATES, Tuning, mixed, num_answers, tune_settings


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
    members: Annotated[
        bool, typer.Option("--members/--no-members", help="Ask the small models of pairs by themselves, too.")
    ] = True,
    member: Annotated[
        list[str] | None,
        typer.Option(
            help="A member to ask by itself, as NAME.tuned; repeat. [all of pairs with a reference]", metavar="MEMBER"
        ),
    ] = None,
    scorer: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(SCORERS)}; repeat for several. [contains]")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="Regular expression that the whole answer must match.")] = None,
    schema: Annotated[Path | None, typer.Option(help="File with the JSON schema of an answer.")] = None,
    fold_accents: Annotated[
        bool, typer.Option("--fold-accents", help="exact, contains, regex: Bogotá is Bogota.")
    ] = False,
    judge: Annotated[
        str | None, typer.Option(help="MODULE:NAME of a chat model, or of something that makes one when called.")
    ] = None,
    criterion: Annotated[str, typer.Option(help="What the judge is asked about an answer.")] = "Is the answer correct?",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer; longer ones are cut, and counted.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy and repeatable.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed of every answer.")] = None,
    amplification: options.Amplification = 1.0,
    conservative_top_p: options.ConservativeTopP = None,
    prompt_pair: options.PromptPairs = None,
    positive: options.Positive = None,
    negative: options.Negative = None,
    min_plausibility: options.MinPlausibility = 0.0,
    tuned_plausibility: options.TunedPlausibility = 0.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.md, a plot, and every answer as soon as it is given; what is there is not asked again."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="With --report: discard the answers that are there.")] = False,
    as_json: options.Json = False,
) -> None:
    """Measure a trio on a question file at several weights, or find the right one; the last line is JSON."""
    _check_way(tune=tune, weight=weight, candidate=candidate, output=output, report=report, fresh=fresh)
    scorers = [
        make_scorer(name, pattern=pattern, schema=schema, judge=judge, criterion=criterion, fold_accents=fold_accents)
        for name in dict.fromkeys(scorer or default_scorers(pattern=pattern, schema=schema, judge=judge))
    ]
    file = read_questions(questions).first(limit)
    file.check_for(scorers)
    formula = options.formula(
        prompt_pair,
        positive=positive,
        negative=negative,
        min_plausibility=min_plausibility,
        tuned_plausibility=tuned_plausibility,
    )
    formula = formula.model_copy(update={"amplification": amplification, "conservative_top_p": conservative_top_p})
    texts = candidate if tune else (weight or ("0", "0.5", "1", "1.5", "2"))
    settings = CANDIDATES if texts is None else [parse_setting(text) for text in texts]
    settings = [for_pairs(setting, choice.pairs, formula) for setting in settings]
    sampling = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
    alone = choose_members(choice, member, wanted=members)
    plan = _Plan(settings, alone, base_alone(choice.pairs, formula) if tune else None)
    log = AnswerLog()
    if report is not None:
        check_plots()
        facts = facts_of(choice.base, choice.pairs, choice.config, sampling=sampling, composition=formula)
        log = open_log(report, facts, fresh=fresh)
    with log, Signals() as signals, _told_what_is_kept(log):
        if report is not None and len(log):
            _say(f"{len(log)} answers are in {report} already and are not asked again")
        with options.load_engine(choice) as engine:
            _check_prompts(engine, file, max_tokens=max_tokens)
            progress = EvaluationProgress(settings=plan.num_answers(file), members=len(alone) * len(file.questions))

            def wait() -> None:
                progress.wait()
                signals.check()

            evaluation = Evaluation(
                engine,
                plan.asked(file),
                scorers=scorers,
                sampling=sampling,
                composition=formula,
                log=log,
                on_progress=progress.advance,
                on_wait=wait,
            )
            with progress:
                outcome = _run(plan, evaluation, signals)
        if not outcome.results:
            assert outcome.stop is not None, "without an answer nothing ends but by a signal"
            raise outcome.stop
        evaluation.put_in_order(outcome.results)
        if report is not None:
            write_report(report, evaluation.questions, outcome.results, warnings=outcome.warnings)
        if output is not None and outcome.found is not None:
            write_composition(output, choice, formula, outcome.found.best.weights)
        _print(outcome, len(file.questions), [report and report / "report.md", output], as_json=as_json)
        if outcome.stop is not None:
            raise outcome.stop


@dataclass(frozen=True)
class _Plan:
    """What is asked. `off`: the setting of the base, where the best one is looked for."""

    settings: Sequence[Weights]
    members: Sequence[Setting]
    off: Weights = None

    def asked(self, file: QuestionFile) -> list[Question]:
        """The questions in the order in which they are asked."""
        return list(file.questions) if self.off is None else mixed(file.questions)

    def num_answers(self, file: QuestionFile) -> int:
        """Answers at settings that there will be."""
        num_questions, num_settings = len(file.questions), len({Setting(own).key() for own in self.settings})
        return num_settings * num_questions if self.off is None else num_answers(num_settings, num_questions)

    def rows(self) -> list[Setting]:
        """All that may have answers, once each."""
        off = [] if self.off is None else [Setting(self.off)]
        rows = [*off, *(Setting(own) for own in self.settings), *self.members]
        return list({row.key(): row for row in rows}.values())


@dataclass(frozen=True)
class _Outcome:
    """What was measured. `stop`: the signal that ended it before its end."""

    results: list[WeightResult]
    warnings: list[str]
    found: Tuning | None = None
    stop: StoppedBySignal | None = None


def _run(plan: _Plan, evaluation: Evaluation, signals: Signals) -> _Outcome:
    try:
        signals.is_patient = True
        if plan.off is None:
            results = evaluate_settings(evaluation, [Setting(own) for own in plan.settings], plan.members)
            return _Outcome(results, cut_warnings(results))
        found = tune_settings(evaluation, plan.settings, off=plan.off, members=plan.members)
        return _Outcome([*found.results, *found.members], list(found.warnings), found)
    except StoppedBySignal as stop:
        rows = [evaluation.so_far(row) for row in plan.rows()]
        so_far = [own for own in rows if own.answers]
        untouched = ", ".join(own.label for own in rows if not own.answers)
        told = (
            f"stopped by {stop} with {sum(len(own.answers) for own in so_far)} answers, of which short ones came first"
        )
        told += f"; nothing was asked at: {untouched}" if untouched else ""
        return _Outcome(so_far, [told, *cut_warnings(so_far)], stop=stop)
    finally:
        signals.is_patient = False


@contextmanager
def _told_what_is_kept(log: AnswerLog) -> Iterator[None]:
    """Whatever ends an evaluation early: say how to go on. A signal ends it with the exit status that shells give it."""
    try:
        yield
    except StoppedBySignal as stop:
        _say(f"stopped by {stop}; {_kept(log)}")
        raise typer.Exit(128 + stop.signum) from None
    except EFTError:
        if log.folder is not None and len(log):
            _say(_kept(log))
        raise


def _kept(log: AnswerLog) -> str:
    if log.folder is None:
        return "no answer is kept; with --report FOLDER they are, and the same command goes on"
    return f"{len(log)} answers are in {log.folder}, and the same command goes on from there"


def _check_prompts(engine: Any, file: QuestionFile, *, max_tokens: int) -> None:
    """Say what is odd about the questions, and that members have different templates.

    Raises:
        InvalidOptionError: a question cannot be asked.
    """
    found = fitting(engine, file.questions, max_tokens=max_tokens)
    file.refuse([(file.lines[place], why) for place, why in found.refused])
    warnings = [f"{file.path}, {warning}" for warning in file.warnings]
    if found.short_of_room:
        warnings.append(
            f"{len(found.short_of_room)} prompts leave less than {max_tokens} tokens of the context of {engine.context_len} "
            f"(line {file.lines[found.short_of_room[0]]} first), which cuts longer answers"
        )
    differences = template_differences(engine, file.questions)
    if differences:
        differences.append(
            "all members read the same prompt, the tuned model's: weight 0 is the base with that prompt, not with its own"
        )
    for warning in (*warnings, *differences):
        _say(f"warning: {warning}")


def _print(outcome: _Outcome, num_questions: int, written: Sequence[Path | None], *, as_json: bool) -> None:
    found = outcome.found
    if not as_json:
        out = options.console()
        print_tables(out, outcome.results, num_questions, None if found is None else found.best)
        for warning in outcome.warnings:
            out.print(f"warning: {warning}")
        for path in written:
            if path is not None and path.exists():
                out.print(f"written: {path}")
    told = summary(outcome.results) | {"warnings": outcome.warnings}
    if found is not None:
        told |= {"best": found.best.label, "finalists": list(found.finalists)}
    options.print_json(told | ({"stopped": str(outcome.stop)} if outcome.stop else {}))


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _check_way(
    *, tune: bool, weight: object, candidate: object, output: Path | None, report: Path | None, fresh: bool
) -> None:
    if tune and weight:
        raise InvalidOptionError("--weight measures settings and --tune finds one; name what it tries with --candidate")
    if not tune and (candidate or output):
        name = "--candidate" if candidate else "--output"
        raise InvalidOptionError(f"{name} belongs to --tune; add it", option=name.strip("-"))
    if output is not None and output.suffix not in (".json", ".yaml", ".yml"):
        raise InvalidOptionError(
            f"--output must end in .json, .yaml or .yml, got {str(output)!r}", option="output", value=str(output)
        )
    if fresh and report is None:
        raise InvalidOptionError("--fresh discards answers in the folder of --report; name it", option="fresh")
