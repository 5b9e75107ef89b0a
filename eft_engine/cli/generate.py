"""`eft generate`: one prompt, one answer."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from eft_engine.cli import trio_options as options
from eft_engine.config import SamplingParams

MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", help="Most tokens to generate; a longer answer is cut.")]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0: always the most probable token.")]
TopP = Annotated[float, typer.Option("--top-p", help="Sample from the smallest set with this probability.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same text.")]


@options.takes_trio
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads standard input.")],
    choice: options.TrioChoice,
    weight: options.Weight = None,
    prompt_pair: options.PromptPairs = None,
    positive: options.Positive = None,
    negative: options.Negative = None,
    min_plausibility: options.MinPlausibility = 0.0,
    tuned_plausibility: options.TunedPlausibility = 0.0,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text; repeat for several.")] = None,
    system: options.System = None,
    raw: options.Raw = False,
    as_json: options.Json = False,
) -> None:
    """Answer one prompt, streaming."""
    weights = options.parse_weights(weight)
    sampling = SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=tuple(stop or ())
    )
    asked = options.as_prompt(prompt, raw=raw, system=system)
    formula = options.formula(
        prompt_pair,
        positive=positive,
        negative=negative,
        min_plausibility=min_plausibility,
        tuned_plausibility=tuned_plausibility,
        raw=raw,
    )
    with options.load_engine(choice) as engine:
        if as_json:
            answer = engine.generate(asked, sampling=sampling, reward_weights=weights, composition=formula)
            options.print_json(answer)
            return
        for delta in engine.stream(asked, sampling=sampling, reward_weights=weights, composition=formula):
            sys.stdout.write(delta.text_delta)
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
        options.warn_if_cut(delta)
