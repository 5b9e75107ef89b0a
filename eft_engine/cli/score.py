"""`eft score`: how probable a completion is under every member and their composition, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from eft_engine.cli import trio_options as options
from eft_engine.cli.teacher_file import Export, export
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.texts import read_texts
from eft_engine.outputs import PairScore, ScoreOutput
from eft_engine.weights import is_schedule, weights_as_json

TEACHER = "Export for distillation"
DEFAULT_TOP_K = 64


@options.takes_trio
def score(
    prompt: Annotated[
        str, typer.Argument(help="The prompt; - reads standard input. With --out: a file of prompts, JSON Lines.")
    ],
    choice: options.TrioChoice,
    completion: Annotated[
        str | None, typer.Argument(help="The completion to score; with --out it is in the file.")
    ] = None,
    weight: options.Weight = None,
    prompt_pair: options.PromptPairs = None,
    positive: options.Positive = None,
    negative: options.Negative = None,
    min_plausibility: options.MinPlausibility = 0.0,
    tuned_plausibility: options.TunedPlausibility = 0.0,
    system: options.System = None,
    raw: options.Raw = False,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="With --out: so many tokens at each position. [64]", rich_help_panel=TEACHER),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write the most probable tokens at every position, for distillation, to this file (docs/baking.md).",
            rich_help_panel=TEACHER,
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer to a prompt without a completion.", rich_help_panel=TEACHER)
    ] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of these answers.", rich_help_panel=TEACHER)] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of these answers.", rich_help_panel=TEACHER)] = 0,
    as_json: options.Json = False,
) -> None:
    """Score a completion: log-probabilities per member, the implicit reward tuned - reference, and which tokens weights steer.

    With --out: score a file of prompts, with completions or with answers that the composition writes, for distillation.
    """
    weights = options.parse_weights(weight)
    _check_way(completion, out=out, top_k=top_k, raw=raw, system=system)
    formula = options.formula(
        prompt_pair,
        positive=positive,
        negative=negative,
        min_plausibility=min_plausibility,
        tuned_plausibility=tuned_plausibility,
        raw=raw,
    )
    if out is not None:
        texts = read_texts(Path(prompt))
        how = Export(top_k or DEFAULT_TOP_K, max_tokens, temperature, seed)
        with options.load_engine(choice) as engine:
            num_tokens = export(engine, texts, out, how, reward_weights=weights, composition=formula)
        options.print_json({"out": str(out), "texts": len(texts), "tokens": num_tokens, "top_k": how.top_k})
        return
    assert completion is not None, "checked above"
    asked = options.as_prompt(prompt, raw=raw, system=system)
    with options.load_engine(choice) as engine:
        scores: ScoreOutput = engine.score(asked, completion, reward_weights=weights, composition=formula)
    if as_json:
        options.print_json(
            {
                "tokens": scores.tokens,
                "reward_weights": weights_as_json(scores.reward_weights),
                "base": scores.base,
                "composed": scores.composed,
                "rewards": {name: scores.reward(name) for name in scores.reward_weights},
                "intervention_rate": scores.intervention_rate,
            }
        )
        return
    options.console().print(_table(scores, prompt_pairs=formula.prompt_pairs))


def _check_way(completion: str | None, *, out: Path | None, top_k: int | None, raw: bool, system: str | None) -> None:
    if out is None and completion is None:
        raise InvalidOptionError(
            "there is no completion to score; give PROMPT and COMPLETION, or a file of prompts and --out",
            option="completion",
        )
    if out is None and top_k is not None:
        raise InvalidOptionError("--top-k belongs to --out FILE; add it", option="top_k", value=top_k)
    if out is not None and completion is not None:
        raise InvalidOptionError(
            'with --out the completions are in the file, as {"prompt": ..., "completion": ...}; leave the argument out',
            option="completion",
            value=completion,
        )
    if out is not None and (raw or system):
        raise InvalidOptionError(
            '--raw and --system are for one prompt; in a file they are {"prompt": ...} and {"messages": [...]}',
            option="out",
        )


def _table(scores: ScoreOutput, *, prompt_pairs: Mapping[str, object]) -> Table:
    """Members as they are called: a prompt pair has a positive and a negative side, a term no reference. Where a weight follows the
    token it has a column.
    """
    effective = options.weights_text(scores.reward_weights)
    steered = f"; {scores.intervention_rate:.0%} of tokens steered" if scores.reward_weights else ""
    table = Table(title=f"log-probabilities ({effective or 'base alone'}{steered})", show_footer=True)
    table.add_column("token", footer="sum")
    table.add_column("base", footer=f"{scores.base:.3f}", justify="right")
    following = [name for name, weight in scores.reward_weights.items() if is_schedule(weight)]
    for name in scores.reward_weights:
        roles = ("positive", "negative") if name in prompt_pairs else ("tuned", "reference")
        columns = [_cells(token.pairs[name]) for token in scores.tokens]
        for place, role in enumerate(roles[: len(columns[0])]):
            total = sum(column[place] for column in columns)
            table.add_column(f"{name}.{role}", footer=f"{total:.3f}", justify="right")
        table.add_column(f"{name} reward", footer=f"{scores.reward(name):+.3f}", justify="right")
        if name in following:
            table.add_column(f"{name} weight", justify="right")
    table.add_column("composed", footer=f"{scores.composed:.3f}", justify="right")
    for token in scores.tokens:
        cells = [repr(token.token), f"{token.base:.3f}"]
        for name in scores.reward_weights:
            pair = token.pairs[name]
            cells += [*(f"{value:.3f}" for value in _cells(pair)), f"{pair.delta:+.3f}"]
            if name in following:
                cells.append(f"{token.weights[name]:g}")
        table.add_row(*cells, f"{token.composed:.3f}")
    return table


def _cells(pair: PairScore) -> list[float]:
    """What tuned and reference give; the reference is left out where there is none."""
    return [pair.tuned] if pair.reference is None else [pair.tuned, pair.reference]
