"""`eft score`: how probable a completion is under every member and their composition, token by token."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from eft_engine.cli import trio_options as options
from eft_engine.outputs import ScoreOutput


@options.takes_trio
def score(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads standard input.")],
    completion: Annotated[str, typer.Argument(help="The completion to score.")],
    choice: options.TrioChoice,
    weight: options.Weight = None,
    system: options.System = None,
    raw: options.Raw = False,
    as_json: options.Json = False,
) -> None:
    """Score a completion: log-probabilities per member, and the implicit reward tuned - reference."""
    weights = options.parse_weights(weight)
    asked = options.as_prompt(prompt, raw=raw, system=system)
    with options.load_engine(choice) as engine:
        scores: ScoreOutput = engine.score(asked, completion, reward_weights=weights)
    if as_json:
        options.print_json(
            {
                "tokens": scores.tokens,
                "reward_weights": scores.reward_weights,
                "base": scores.base,
                "composed": scores.composed,
                "rewards": {name: scores.reward(name) for name in scores.reward_weights},
            }
        )
        return
    options.console().print(_table(scores))


def _table(scores: ScoreOutput) -> Table:
    effective = ", ".join(f"{name}={weight:g}" for name, weight in scores.reward_weights.items())
    table = Table(title=f"log-probabilities ({effective or 'base alone'})", show_footer=True)
    table.add_column("token", footer="sum")
    table.add_column("base", footer=f"{scores.base:.3f}", justify="right")
    for name in scores.reward_weights:
        for role in ("tuned", "reference"):
            total = sum(getattr(token.pairs[name], role) for token in scores.tokens)
            table.add_column(f"{name}.{role}", footer=f"{total:.3f}", justify="right")
        table.add_column(f"{name} reward", footer=f"{scores.reward(name):+.3f}", justify="right")
    table.add_column("composed", footer=f"{scores.composed:.3f}", justify="right")
    for token in scores.tokens:
        cells = [repr(token.token), f"{token.base:.3f}"]
        for pair in token.pairs.values():
            cells += [f"{pair.tuned:.3f}", f"{pair.reference:.3f}", f"{pair.delta:+.3f}"]
        table.add_row(*cells, f"{token.composed:.3f}")
    return table
