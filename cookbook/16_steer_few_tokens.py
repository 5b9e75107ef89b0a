"""Steer only where it is needed: a gate instead of a constant weight: python cookbook/16_steer_few_tokens.py

You learn to give a weight as a rule: the pair counts where the base is unsure what to write, and nowhere else. The answer's form is that of
weight 1, and three of four tokens are the base's alone, so that facts have less to fear from a high weight. `eft eval --tune` finds such a rule for
your questions. Models: Atlas, offline. `--real` takes Qwen2.5 (not run here).

Prints:

    0: 0% of the tokens steered: The capital of Peru is Lima.
    1: 100% of the tokens steered: The capital of Peru is Lima. Source: memory.
    1 where the base's entropy is above 0.5: 27% of the tokens steered: The capital of Peru is Lima. Source: memory.
      steered: 'The' ' ' 'Source' ' memory'
      not what the base would write: 1 tokens
    from 2 to 0 in 12 tokens: 80% of the tokens steered: The capital of Peru is Lima. Source: memory.
    inside strings of JSON: 0% of the tokens steered: The capital of Peru is Lima.
"""

from __future__ import annotations

import sys

from eft_engine import Engine, Gate, InJsonStrings, LinearRamp, SamplingParams, TokenIds, TunedPair, Weight, load_preset

QUESTION = [{"role": "user", "content": "What is the capital of Peru?"}]
RULES: dict[str, Weight] = {
    "0": 0.0,
    "1": 1.0,
    "1 where the base's entropy is above 0.5": Gate(by="base_entropy", above=0.5),
    "from 2 to 0 in 12 tokens": LinearRamp(start=2.0, end=0.0, num_tokens=12),
    "inside strings of JSON": InJsonStrings(),
}


def load() -> Engine:
    """The engine of the script."""
    if "--real" in sys.argv:
        pair = TunedPair("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B")
        return Engine.load("Qwen/Qwen2.5-7B", pairs={"chat": pair})
    return load_preset("atlas")


with load() as engine:
    greedy = SamplingParams(temperature=0.0, max_tokens=32)
    for name, weight in RULES.items():
        answer = engine.generate(QUESTION, sampling=greedy, reward_weights=weight)
        print(f"{name}: {answer.intervention_rate:.0%} of the tokens steered: {answer.text}")
        if isinstance(weight, Gate):
            scores = engine.score(QUESTION, TokenIds(ids=answer.token_ids), reward_weights=weight)
            print("  steered:", " ".join(repr(token.token) for token in scores.tokens if token.is_steered))
            print(
                "  not what the base would write:", sum(not token.is_base_greedy for token in scores.tokens), "tokens"
            )
