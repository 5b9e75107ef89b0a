"""`eft score`: how probable a completion is under every member and their composition, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer
from rich.table import Table

from eft_engine.cli import trio_options as options
from eft_engine.outputs import PairScore, ScoreOutput
from eft_engine.weights import is_schedule, weights_as_json


@options.takes_trio
def score(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads standard input.")],
    completion: Annotated[str, typer.Argument(help="The completion to score.")],
    choice: options.TrioChoice,
    weight: options.Weight = None,
    prompt_pair: options.PromptPairs = None,
    positive: options.Positive = None,
    negative: options.Negative = None,
    min_plausibility: options.MinPlausibility = 0.0,
    system: options.System = None,
    raw: options.Raw = False,
    as_json: options.Json = False,
) -> None:
    """Score a completion: log-probabilities per member, the implicit reward tuned - reference, and which tokens weights steer."""
    weights = options.parse_weights(weight)
    asked = options.as_prompt(prompt, raw=raw, system=system)
    formula = options.formula(
        prompt_pair, positive=positive, negative=negative, min_plausibility=min_plausibility, raw=raw
    )
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
