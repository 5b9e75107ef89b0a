"""The paper's experiment on Atlas: does knowledge come from the scale of pre-training, and behaviour from fine-tuning?

    python -m benchmarks.scale_decoupling            # writes docs/scale_decoupling.md and docs/figures/
    python -m benchmarks.scale_decoupling --limit 40 # a quick look, writes nothing

Closed-book factuality (the expected answer occurs in the answer) and behaviour (the whole answer has the tuned form) on the
held-out questions, for every model alone and every composition. The directly tuned large model is not shipped: train it with
`python -m recipes.atlas.train`, or its rows are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.decoupling_report import write_page
from benchmarks.report import finish
from eft_engine import CompositionOptions, Engine, EngineConfig, SamplingParams, SpeculationOptions, TunedPair
from eft_engine.evaluation.intervals import Share
from eft_engine.evaluation.questions import Question, load_questions
from eft_engine.evaluation.run import WeightResult, Weights, evaluate
from eft_engine.evaluation.scorers import ExactMatch, PatternMatch
from eft_engine.zoo.atlas import ASSISTANT_FORM, QUESTION_FILES, has_form
from eft_engine.zoo.presets import ZOO

ATLAS = ZOO / "atlas"
WEIGHTS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
LAMBDAS = (0.0, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
NUM_FRONTIER = 150
SAMPLING = SamplingParams(temperature=0.0, max_tokens=40)
SCORERS = (ExactMatch(anywhere=True, name="factuality"), PatternMatch(ASSISTANT_FORM, name="behaviour"))
REWARD_EXAMPLES = ("What is the capital of Japan?", "Name the currency of Poland.")

console = Console(stderr=True)
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    factuality: Share
    behaviour: Share
    groups: dict[str, Share]
    acceptance_rate: float | None = None


def row_of(name: str, result: WeightResult) -> Row:
    """Counts of one result."""
    groups = {group: result.share("factuality", group=group) for group in sorted(set(result.groups))}
    row = Row(name, result.share("factuality"), result.share("behaviour"), groups, result.acceptance_rate)
    console.print(f"{name}: factuality {row.factuality}, behaviour {row.behaviour}, accepted {row.acceptance_rate}")
    return row


def load(base: Path, *, pairs: dict[str, tuple[Path, Path]] | None = None) -> Engine:
    """An engine in float32 whose drafts, if any, come from the tuned model."""
    config = EngineConfig(dtype="float32", max_num_seqs=32, speculation=SpeculationOptions(drafter="none"))
    members = {name: TunedPair(str(tuned), str(reference)) for name, (tuned, reference) in (pairs or {}).items()}
    return Engine.load(str(base), pairs=members, config=config)


def ask(
    engine: Engine, questions: list[Question], weights: Weights = 1.0, composition: CompositionOptions | None = None
) -> WeightResult:
    """All questions at one setting."""
    (result,) = evaluate(
        engine, questions, scorers=SCORERS, weights=[weights], sampling=SAMPLING, composition=composition
    )
    return result


def native(questions: list[Question]) -> list[Question]:
    """The questions as a pre-trained model is asked: plain text that it goes on with."""
    return [
        Question(prompt=f"Question: {question.question}\nAnswer:", answers=question.answers, group=question.group)
        for question in questions
    ]


def single_models(questions: list[Question], direct: Path | None) -> list[Row]:
    """Every model alone."""
    rows = []
    for name, folder in (("base", ATLAS / "base"), ("reference", ATLAS / "reference")):
        with load(folder) as engine:
            rows.append(row_of(f"{name}, asked in plain text", ask(engine, native(questions))))
            rows.append(row_of(f"{name}, asked in the chat form", ask(engine, questions)))
    with load(ATLAS / "assistant") as engine:
        rows.append(row_of("tuned small", ask(engine, questions)))
    if direct is not None:
        with load(direct) as engine:
            rows.append(row_of("directly tuned large", ask(engine, questions)))
        pair = {"direct": (direct, ATLAS / "base")}
        with load(ATLAS / "reference", pairs=pair) as engine:
            rows.append(row_of("down-scaled, weight 1", ask(engine, questions)))
    return rows


def compositions(questions: list[Question]) -> list[Row]:
    """Up-scaling at every weight, amplified and conservative at weight 1."""
    rows = []
    with load(ATLAS / "base", pairs={"assistant": (ATLAS / "assistant", ATLAS / "reference")}) as engine:
        rows += [row_of(f"up-scaled, weight {weight:g}", ask(engine, questions, weight)) for weight in WEIGHTS]
        for name, options in (
            ("up-scaled, amplification 1.5", CompositionOptions(amplification=1.5)),
            ("up-scaled, amplification 2", CompositionOptions(amplification=2.0)),
            ("up-scaled, conservative top-p 0.95", CompositionOptions(conservative_top_p=0.95)),
        ):
            rows.append(row_of(name, ask(engine, questions, 1.0, options)))
    return rows


def acceptance(questions: list[Question]) -> dict[str, float]:
    """Share of the tuned model's greedy drafts that the composition accepts, by weight."""
    drafting = SpeculationOptions(drafter="tuned", adaptive=False)
    rates = {}
    with load(ATLAS / "base", pairs={"assistant": (ATLAS / "assistant", ATLAS / "reference")}) as engine:
        prompts: list[Any] = [question.as_prompt() for question in questions]
        for weight in WEIGHTS:
            answers = engine.generate(prompts, sampling=SAMPLING, reward_weights=weight, speculation=drafting)
            drafted = sum(answer.metrics.num_drafted for answer in answers)
            rates[f"{weight:g}"] = sum(answer.metrics.num_accepted for answer in answers) / max(1, drafted)
    console.print(f"acceptance: {rates}")
    return rates


def frontier(questions: list[Question]) -> list[dict[str, Any]]:
    """Two opposed behaviours over one reference: the weights lambda and 1 - lambda."""
    pairs = {name: (ATLAS / name, ATLAS / "reference") for name in ("brief", "detailed")}
    points = []
    with load(ATLAS / "base", pairs=pairs) as engine:
        for part in LAMBDAS:
            result = ask(engine, questions, {"brief": 1 - part, "detailed": part})
            texts = [answer.text for answer in result.answers]
            shares = {name: Share(sum(has_form(text, name) for text in texts), len(texts)) for name in pairs}
            points.append(
                {
                    "lambda": part,
                    **{name: share.as_json() for name, share in shares.items()},
                    "factuality": result.share("factuality").as_json(),
                    "mean_tokens": round(result.mean_tokens, 2),
                }
            )
            console.print(f"lambda {part}: {points[-1]}")
    return points


def rewards() -> list[dict[str, Any]]:
    """Tuned minus reference at every token of the up-scaled answer."""
    examples = []
    with load(ATLAS / "base", pairs={"assistant": (ATLAS / "assistant", ATLAS / "reference")}) as engine:
        for question in REWARD_EXAMPLES:
            prompt = [{"role": "user", "content": question}]
            answer = engine.generate(prompt, sampling=SAMPLING)
            scored = engine.score(prompt, answer.text)
            tokens = [{"token": token.token, "reward": token.pairs["assistant"].delta} for token in scored.tokens]
            examples.append({"question": question, "tokens": tokens})
    return examples


def targets(rows: list[Row], points: list[dict[str, Any]]) -> dict[str, Any]:
    """The ratios that decide whether up-scaling works."""
    by_name = {row.name: row for row in rows}
    base, small, up = (by_name[n] for n in ("base, asked in plain text", "tuned small", "up-scaled, weight 1"))
    found: dict[str, Any] = {
        "factuality_of_base": up.factuality.value / base.factuality.value,
        "factuality_of_tuned_small": up.factuality.value / max(small.factuality.value, 1e-9),
        "behaviour_of_tuned_small": up.behaviour.value / max(small.behaviour.value, 1e-9),
    }
    if "directly tuned large" in by_name:
        gap = by_name["directly tuned large"].factuality.value - small.factuality.value
        found["gap_closed"] = (up.factuality.value - small.factuality.value) / gap if gap else None
    # Monotone within the intervals: no later point lies significantly below an earlier one (or above, for brief).
    found["frontier_monotone"] = all(
        later["detailed"]["high"] >= earlier["detailed"]["low"] and later["brief"]["low"] <= earlier["brief"]["high"]
        for index, earlier in enumerate(points)
        for later in points[index + 1 :]
    )
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}


@app.command()
def main(
    *,
    work_dir: Annotated[Path, typer.Option(help="Where the directly tuned large model lies.")] = Path("build/atlas"),
    docs: Annotated[Path, typer.Option(help="Folder for the page and its figures.")] = Path("docs"),
    limit: Annotated[int | None, typer.Option(min=1, help="Fewer questions; then nothing is written.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 1,
) -> None:
    """Measure, write the page, and print one line of JSON."""
    torch.set_num_threads(threads)
    questions = load_questions(QUESTION_FILES["facts"])[:limit]
    direct = work_dir / "direct"
    rows = single_models(questions, direct if (direct / "config.json").exists() else None) + compositions(questions)
    rates = acceptance(questions[:NUM_FRONTIER])
    points = frontier(questions[:NUM_FRONTIER])
    result = {
        "num_questions": len(questions),
        "rows": {
            row.name: {
                "factuality": row.factuality.as_json(),
                "behaviour": row.behaviour.as_json(),
                "groups": {name: share.as_json() for name, share in row.groups.items()},
            }
            for row in rows
        },
        "acceptance": {weight: round(rate, 4) for weight, rate in rates.items()},
        "frontier": points,
        "targets": targets(rows, points),
    }
    if limit is None:
        write_page(docs, result, rewards(), weights=WEIGHTS)
    finish("scale_decoupling", result)


if __name__ == "__main__":
    app()
