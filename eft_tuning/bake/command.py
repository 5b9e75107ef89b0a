"""`eft bake`: a composition becomes one LoRA adapter of its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eft_engine.cli import trio_options as options

if TYPE_CHECKING:
    from eft_engine.evaluation.scorers import Scorer
    from eft_tuning.bake.prompts import Ask
    from eft_tuning.bake.report import BakeReport

MEASURE, LEARN = "What is measured", "How it is learnt"


@options.takes_trio
def bake(
    prompts: Annotated[
        Path,
        typer.Argument(help="JSON Lines: a question file of `eft eval`, or a chat file, whose answers are left out."),
    ],
    choice: options.TrioChoice,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the adapter.")],
    weight: options.Weight = None,
    amplification: options.Amplification = 1.0,
    conservative_top_p: options.ConservativeTopP = None,
    prompt_pair: options.PromptPairs = None,
    positive: options.Positive = None,
    negative: options.Negative = None,
    min_plausibility: options.MinPlausibility = 0.0,
    tuned_plausibility: options.TunedPlausibility = 0.0,
    template: Annotated[
        str,
        typer.Option(
            help="Chat template that the adapter answers behind: that of the composition, or the base's own.",
            metavar="composition|base",
        ),
    ] = "composition",
    held_out: Annotated[
        Path | None, typer.Option(help="File of prompts to measure with, in the same forms.", rich_help_panel=MEASURE)
    ] = None,
    held_out_share: Annotated[
        float, typer.Option(help="Without that file: share of the prompts that is held out.", rich_help_panel=MEASURE)
    ] = 0.1,
    scorer: Annotated[
        list[str] | None,
        typer.Option(help="As for `eft eval`: exact, contains, regex, schema, judge; repeat.", rich_help_panel=MEASURE),
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Regular expression that the whole answer must match.", rich_help_panel=MEASURE)
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="File with the JSON schema of an answer.", rich_help_panel=MEASURE)
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="MODULE:NAME of a chat model that judges.", rich_help_panel=MEASURE)
    ] = None,
    criterion: Annotated[
        str, typer.Option(help="What the judge is asked about an answer.", rich_help_panel=MEASURE)
    ] = "Is the answer correct?",
    samples: Annotated[int, typer.Option(min=1, help="Answers of the composition to each prompt.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer; longer ones are cut.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the answers that are learnt from.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=1, help="Tokens told at each position; the others are one bucket.")] = 64,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.")] = None,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter; its scale is 2.", rich_help_panel=LEARN)] = 16,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers that get an adapter, by name; repeat. [all linear ones but the head]", rich_help_panel=LEARN
        ),
    ] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the answers.", rich_help_panel=LEARN)] = 3.0,
    learning_rate: Annotated[float, typer.Option("--lr", help="Highest learning rate.", rich_help_panel=LEARN)] = 5e-4,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers in a step.", rich_help_panel=LEARN)] = 8,
    rows_at_once: Annotated[
        int, typer.Option(min=1, help="Answers in one pass; fewer take less memory.", rich_help_panel=LEARN)
    ] = 8,
    divergence: Annotated[
        str, typer.Option(help="forward, reverse or jensen_shannon.", rich_help_panel=LEARN)
    ] = "forward",
    rounds: Annotated[
        int,
        typer.Option(
            min=0,
            help="Then, so often: the adapter answers and learns what the composition says of it.",
            rich_help_panel=LEARN,
        ),
    ] = 0,
    round_divergence: Annotated[str, typer.Option(help="Of these rounds.", rich_help_panel=LEARN)] = "reverse",
    patience: Annotated[
        int, typer.Option(min=0, help="Epochs without improvement on held-out prompts; 0: all.", rich_help_panel=LEARN)
    ] = 2,
    train_dtype: Annotated[
        str, typer.Option(help="Of the base in training: auto, float32, bfloat16.", rich_help_panel=LEARN)
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of split, answers and training.")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, whatever the folder holds.")] = False,
    keep_work: Annotated[bool, typer.Option("--keep-work", help="Leave answers and checkpoints in OUT/work.")] = False,
    as_json: options.Json = False,
) -> None:
    """Bake a composition into one LoRA adapter of its base, and measure what it keeps; interrupted, the same command goes on."""
    from eft_tuning.bake.prompts import load_asks, split_asks, without
    from eft_tuning.bake.run import bake as run
    from eft_tuning.bake.settings import BakeSettings
    from eft_tuning.stages import Reporter

    formula = options.formula(
        prompt_pair,
        positive=positive,
        negative=negative,
        min_plausibility=min_plausibility,
        tuned_plausibility=tuned_plausibility,
    ).model_copy(update={"amplification": amplification, "conservative_top_p": conservative_top_p})
    chosen: dict[str, Any] = {  # checked there
        "template": template, "divergence": divergence, "round_divergence": round_divergence, "dtype": train_dtype,
        "target_modules": tuple(target) if target else "all-linear",
    }  # fmt: skip
    settings = BakeSettings(
        reward_weights=options.parse_weights(weight), composition=formula, num_samples=samples, temperature=temperature,
        max_tokens=max_tokens, top_k=top_k, rank=rank, alpha=2 * rank, epochs=epochs, learning_rate=learning_rate,
        batch_size=batch_size, rows_at_once=rows_at_once, rounds=rounds, patience=patience, held_out_share=held_out_share,
        seed=seed, **chosen,
    )  # fmt: skip
    reporter = Reporter()
    asks = load_asks(prompts)[:limit]
    if held_out is None:
        asks, measured = split_asks(asks, share=held_out_share, seed=seed)
    else:
        measured = load_asks(held_out)
        asks, num_both = without(asks, measured)
        if num_both:
            reporter.say(f"{num_both} prompts are held out and so not learnt from")
    scorers = _scorers(scorer, measured, pattern=pattern, schema=schema, judge=judge, criterion=criterion)
    try:
        report = run(
            choice.base, choice.pairs, asks, measured, out=out, settings=settings, scorers=scorers, config=choice.config,
            restart=restart, keep_work=keep_work, reporter=reporter,
        )  # fmt: skip
    except KeyboardInterrupt:
        reporter.say("interrupted; what was answered is kept, and the same command goes on")
        raise typer.Exit(130) from None
    if report.interrupted_by is not None:
        reporter.say("interrupted; the same command goes on from the checkpoint")
        raise typer.Exit(128 + report.interrupted_by)
    if not as_json:
        _show(report, out)
    options.print_json({"out": str(out), **report.as_json()} if as_json else _summary(report, out))


def _scorers(
    names: list[str] | None,
    measured: list[Ask],
    *,
    pattern: str | None,
    schema: Path | None,
    judge: str | None,
    criterion: str,
) -> list[Scorer]:
    """Those of `eft eval`; without any option, whether the expected answer occurs, where all held-out prompts have one."""
    from eft_engine.cli.evaluate_settings import default_scorers, make_scorer

    if names is None:
        names = default_scorers(pattern=pattern, schema=schema, judge=judge)
        if pattern is None and schema is None and judge is None and not all(ask.question.answers for ask in measured):
            names = []
    return [
        make_scorer(name, pattern=pattern, schema=schema, judge=judge, criterion=criterion)
        for name in dict.fromkeys(names)
    ]


def _show(report: BakeReport, out: Path) -> None:
    from rich.table import Table

    from eft_tuning.bake.report import rows_of

    heading, *rows = rows_of(report)
    table = Table(title=f"{report.num_held_out} held-out prompts, shares with 95 % intervals")
    for name in heading:
        table.add_column(name, justify="left" if name == "" else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    if rows:
        options.console().print(table)
    options.console().print(
        f"written: {out} (README.md there says how to serve it)\n"
        f"ask it: Engine.load(MemberConfig(source={report.composition['base']!r}, adapter={str(out)!r}))",
        soft_wrap=True,
        markup=False,
    )


def _summary(report: BakeReport, out: Path) -> dict[str, Any]:
    """The last line."""
    told = report.as_json()
    return {
        "out": str(out),
        **{name: told[name] for name in ("gain_kept", "level_kept", "agreement", "steps", "seconds")},
    }
