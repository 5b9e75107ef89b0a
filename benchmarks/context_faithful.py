"""Does an answer follow its passage, where the base knows better? Context-aware decoding (Shi et al. 2023, arXiv 2305.14739) as a
prompt pair: with the passage against without it.

    python -m benchmarks.context_faithful atlas
    python -m benchmarks.context_faithful smollm2 --limit 60

Every question is asked twice, greedy: with a passage that contradicts what the base knows, and with one that agrees. An answer
counts where it says what the passage says, and not what is commonly known if that is another thing. For Atlas the passages are made
of its held-out facts, as the only sentence (`alone`) or among one to three sentences about other places (`among`); for SmolLM2 the
60 questions are in `contradicting_passages.jsonl`.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console

from benchmarks.report import finish
from eft_engine import (
    CompositionOptions,
    Engine,
    PromptPair,
    Proportional,
    SamplingParams,
    Weight,
    Without,
    load_preset,
)
from eft_engine.config import Messages
from eft_engine.evaluation.intervals import share_of
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.run import label_of
from eft_engine.evaluation.scorers import ExactMatch
from eft_engine.zoo.atlas import QUESTION_FILES
from eft_engine.zoo.presets import smollm2
from recipes.atlas.fiction import CONTEXT_PROMPTS
from recipes.atlas.phrasing import QUESTIONS, STATEMENTS

PASSAGES = Path(__file__).parent / "contradicting_passages.jsonl"
PROMPT = "Context: {c}\n\nAnswer the question from the context, in one short sentence.\n\nQuestion: {q}"
Kind = Literal["contradicts", "agrees"]
KINDS: tuple[Kind, ...] = ("contradicts", "agrees")
ADAPTIVE = Proportional(to="jensen_shannon")
SETTINGS: tuple[tuple[Weight, float], ...] = (
    (0.0, 0.0),
    (0.5, 0.0),
    (1.0, 0.0),
    (1.0, 0.01),
    (1.0, 0.1),
    (2.0, 0.0),
    (2.0, 0.1),
    (ADAPTIVE, 0.0),
    (Proportional(to="jensen_shannon", factor=2.0, most=2.0), 0.0),
)
"""Weights of the pair, and how plausible the base must find a token."""

console = Console(stderr=True)
contains = ExactMatch(anywhere=True)


@dataclass(frozen=True)
class Case:
    """A question with a passage: what this says, and what is commonly known if that is another thing."""

    kind: Kind
    group: str
    prompt: str
    passage: str
    told: tuple[str, ...]
    known: tuple[str, ...]

    def follows(self, answer: str) -> bool:
        """Whether an answer is that of the passage."""
        return _holds(answer, self.told) and not _holds(answer, self.known)


def _holds(answer: str, accepted: tuple[str, ...]) -> bool:
    return bool(accepted) and contains.score(Question(prompt="-", answers=list(accepted)), answer)


def atlas_cases(limit: int, *, seed: int = 5) -> list[Case]:
    """The first held-out facts, each contradicted and confirmed, by a passage of one sentence and by one of several."""
    facts = [json.loads(line) for line in QUESTION_FILES["facts"].read_text(encoding="utf-8").splitlines()]
    rng = random.Random(seed)
    values = {fact["group"]: [own["answers"][0] for own in facts if own["group"] == fact["group"]] for fact in facts}
    return [case for fact in facts[:limit] for case in _of_fact(fact, facts, values[fact["group"]], rng)]


def _of_fact(fact: Any, facts: list[Any], values: list[str], rng: random.Random) -> Iterator[Case]:
    known, subject = fact["answers"][0], subject_of(fact)
    wrong = rng.choice([value for value in values if value != known])
    prompt, statement = rng.choice(CONTEXT_PROMPTS), rng.choice(STATEMENTS[fact["group"]])
    others = [other for other in rng.sample(facts, 5) if subject_of(other) != subject][: rng.randint(1, 3)]
    sentences = [
        rng.choice(STATEMENTS[other["group"]])
        .replace("{s}", subject_of(other))
        .replace("{o}", str(other["answers"][0]))
        for other in others
    ]
    place = rng.randint(0, len(sentences))
    for group, around in (("alone", []), ("among", sentences)):
        for value in (wrong, known):
            own = statement.replace("{s}", subject).replace("{o}", value)
            passage = " ".join([*around[:place], own, *around[place:]])
            yield Case(
                "contradicts" if value == wrong else "agrees",
                group,
                prompt.replace("{c}", passage).replace("{q}", fact["question"]),
                passage,
                (value,),
                (known,) if value == wrong else (),
            )


def subject_of(fact: Any) -> str:
    """The place that a question of Atlas asks about."""
    for wording in QUESTIONS[fact["group"]]:
        before, after = wording.split("{s}")
        if match := re.fullmatch(f"{re.escape(before)}(.+){re.escape(after)}", fact["question"]):
            return match[1]
    raise ValueError(f"no wording of {fact['group']} gives {fact['question']!r}")


def written_cases(limit: int) -> list[Case]:
    """The first questions of the file."""
    cases = []
    for line in PASSAGES.read_text(encoding="utf-8").splitlines()[:limit]:
        row = json.loads(line)
        for kind in KINDS:
            told, known = (row["told"], row["known"]) if kind == "contradicts" else (row["known"], [])
            prompt = PROMPT.replace("{c}", row[kind]).replace("{q}", row["question"])
            cases.append(Case(kind, "alone", prompt, row[kind], tuple(told), tuple(known)))
    return cases


def measure(engine: Engine, cases: list[Case], weight: Weight, min_plausibility: float, max_tokens: int) -> list[Any]:
    """Answers of the base to all cases."""
    prompts: list[Messages] = [[{"role": "user", "content": case.prompt}] for case in cases]
    return engine.generate(
        prompts,
        sampling=SamplingParams(temperature=0.0, max_tokens=max_tokens),
        reward_weights=0.0,
        composition=[
            CompositionOptions(
                min_plausibility=min_plausibility,
                prompt_pairs={"context": PromptPair(negative=Without(texts=(case.passage,)), weight=weight)},
            )
            for case in cases
        ],
    )


def main(
    model: Annotated[str, typer.Argument(help="atlas or smollm2")] = "atlas",
    limit: Annotated[int, typer.Option(min=1, help="Questions.")] = 200,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    settings: Annotated[
        str | None, typer.Option(help="Places of the settings that are measured, as 0,2,4. [all]")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 1,
    examples: Annotated[int, typer.Option(min=0, help="Answers to show of every setting.")] = 0,
) -> None:
    """Measure and print one line of JSON."""
    torch.set_num_threads(threads)
    cases = atlas_cases(limit) if model == "atlas" else written_cases(limit)
    chosen = SETTINGS if settings is None else [SETTINGS[int(place)] for place in settings.split(",")]
    rows = []
    with load_preset("atlas") if model == "atlas" else Engine.load(smollm2(), pairs={}) as engine:
        for weight, min_plausibility in chosen:
            started = time.perf_counter()
            answers = measure(engine, cases, weight, min_plausibility, max_tokens)
            row: dict[str, Any] = {"weight": label_of(weight), "min_plausibility": min_plausibility}
            for group in dict.fromkeys(case.group for case in cases):
                for kind in KINDS:
                    own = [
                        case.follows(answer.text)
                        for case, answer in zip(cases, answers, strict=True)
                        if (case.group, case.kind) == (group, kind)
                    ]
                    row[f"{group} {kind}"] = share_of(own).as_json()
            row["seconds"] = round(time.perf_counter() - started, 1)
            console.print(row)
            for case, answer in list(zip(cases, answers, strict=True))[:examples]:
                console.print(f"  {case.kind}: {case.passage!r} -> {answer.text!r}")
            rows.append(row)
    finish("context_faithful", {"model": model, "num_questions": limit, "max_tokens": max_tokens, "settings": rows})


if __name__ == "__main__":
    typer.run(main)
