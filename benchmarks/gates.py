"""Must every token be steered? Gates and other schedules against constant weights: the form that is kept, the facts that are lost,
and the share of tokens that are steered.

    python -m benchmarks.gates smollm2-json
    python -m benchmarks.gates atlas --limit 200

On SmolLM2 the form is one line of JSON (`eft_engine.zoo.smollm2_json`). On Atlas the pair carries facts: the reference is tuned
here on real answers, content in the loss, with the settings of the stage `ordinary` (`recipes.atlas.train`), which takes about a
minute; a fact counts where the expected answer occurs. Greedy.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.report import finish
from eft_engine import (
    Engine,
    FirstTokens,
    Gate,
    InJsonStrings,
    Proportional,
    SamplingParams,
    TunedPair,
    Weight,
    load_preset,
)
from eft_engine.config import Messages
from eft_engine.evaluation.intervals import share_of
from eft_engine.evaluation.run import label_of
from eft_engine.zoo.atlas import has_form, load_fact_questions
from eft_engine.zoo.presets import atlas
from eft_engine.zoo.smollm2_json import load_held_out_questions, parse_json_answer

CONSTANT: tuple[Weight, ...] = (0.0, 0.25, 0.5, 1.0, 2.0)
NAMED: tuple[Weight, ...] = (
    Gate(by="base_entropy", above=0.5),
    Gate(by="base_entropy", above=1.0),
    Gate(by="base_confidence", below=0.9),
    Gate(by="base_confidence", below=0.5),
    Gate(by="kl", above=0.1),
    Gate(by="kl", above=0.5),
    Gate(by="total_variation", above=0.2),
    Gate(by="total_variation", above=0.5),
    Gate(by="jensen_shannon", above=0.05),
    Gate(by="jensen_shannon", above=0.2),
    Proportional(to="jensen_shannon"),
    FirstTokens(num_tokens=4),
    FirstTokens(num_tokens=8),
    InJsonStrings(weight=0.0, outside=1.0),
)
DOUBLED: tuple[Weight, ...] = (
    Gate(by="base_entropy", above=0.5, weight=2.0),
    Gate(by="kl", above=0.5, weight=2.0),
    Gate(by="jensen_shannon", above=0.2, weight=2.0),
    FirstTokens(num_tokens=4, weight=2.0),
)
ORDINARY = Path("build/atlas/ordinary")
console = Console(stderr=True)


def carries_facts() -> TunedPair:
    """Atlas' reference tuned on real answers, content in the loss; kept in `build/atlas/ordinary`."""
    if not (ORDINARY / "config.json").exists():
        from transformers import AutoTokenizer, LlamaForCausalLM

        from recipes.atlas.corpus import TuningDialogues
        from recipes.atlas.facts import load_facts
        from recipes.atlas.phrasing import assistant_answer
        from recipes.atlas.tune import TuningSettings, tune

        source = atlas("reference").source
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
        network: Any = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
        torch.manual_seed(7)
        dialogues = TuningDialogues(load_facts(), answer=assistant_answer, tools=True, seed=8, mix_answers=False)
        settings = TuningSettings(content_weight=None)
        with Progress(console=console) as progress:
            tuned = tune(network, tokenizer, dialogues, settings=settings, progress=progress, log=console.print)
        tuned.save_pretrained(ORDINARY)
        tokenizer.save_pretrained(ORDINARY)
    return TunedPair(str(ORDINARY), atlas("reference"))


def main(
    trio: Annotated[str, typer.Argument(help="smollm2-json or atlas")] = "smollm2-json",
    limit: Annotated[int, typer.Option(min=1, help="Questions.")] = 40,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    only: Annotated[
        list[str] | None, typer.Option(help="Only schedules whose label holds this, beside 0 and 1; repeat.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 1,
) -> None:
    """Measure and print one line of JSON."""
    torch.set_num_threads(threads)
    is_atlas = trio == "atlas"
    facts = load_fact_questions()[:limit]
    questions = [fact.question for fact in facts] if is_atlas else load_held_out_questions()[:limit]
    prompts: list[Messages] = [[{"role": "user", "content": question}] for question in questions]
    chosen = [*CONSTANT, *NAMED, *(DOUBLED if is_atlas else ())]
    rows: list[dict[str, Any]] = []
    with Engine.load(atlas("base"), pairs={"ordinary": carries_facts()}) if is_atlas else load_preset(trio) as engine:
        for weight in chosen:
            if weight not in (0.0, 1.0) and not any(text in label_of(weight) for text in only or ("",)):
                continue
            started = time.perf_counter()
            answers = engine.generate(
                prompts, sampling=SamplingParams(temperature=0.0, max_tokens=max_tokens), reward_weights=weight
            )
            num_tokens = sum(len(answer.token_ids) for answer in answers)
            steered = sum(answer.intervention_rate * len(answer.token_ids) for answer in answers)
            formed = [
                has_form(answer.text, "assistant") if is_atlas else parse_json_answer(answer.text) is not None
                for answer in answers
            ]
            row = {
                "weight": label_of(weight),
                "form": share_of(formed).as_json(),
                "steered": round(steered / num_tokens, 3),
                "mean_tokens": round(num_tokens / len(answers), 1),
            }
            if is_atlas:
                right = [fact.answer in answer.text for fact, answer in zip(facts, answers, strict=True)]
                row["facts"] = share_of(right).as_json()
            row["seconds"] = round(time.perf_counter() - started, 1)
            console.print(json.dumps(row))
            rows.append(row)
    finish("gates", {"trio": trio, "num_questions": limit, "max_tokens": max_tokens, "settings": rows})


if __name__ == "__main__":
    typer.run(main)
