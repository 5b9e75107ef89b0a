"""`eft tune` on SmolLM2-135M with 200 rows: how long it takes, and how much of the form is there at which weight.

    .venv-tune/bin/python -m benchmarks.tune_smollm2 --work build/tune_smollm2

The rows are questions of recipes/smollm2_json with the plain model's own answers, cut to a sentence and written as one line of
JSON; the measure is that of the JSON pair, on its held-out questions (none of their subjects is trained on).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.report import finish
from eft_engine import Engine, EngineConfig, SamplingParams, TunedPair
from eft_engine.config import LlamaCppOptions
from eft_engine.zoo.presets import smollm2
from eft_engine.zoo.smollm2_json import behaviour_score, load_held_out_questions
from eft_tuning.settings import DEFAULT_KEEP_CONTENT
from recipes.smollm2_json.questions import training_questions
from recipes.smollm2_json.train import DISTIL_TOKENS, first_sentence, refuse_shared_subjects

ANSWER_TOKENS = 64
"""Most tokens of an answer to a held-out question."""


def engine_config(threads: int | None) -> EngineConfig:
    """Sixteen requests at once; llama.cpp's threads as given."""
    return EngineConfig(max_num_seqs=16, self_check=False, llama_cpp=LlamaCppOptions(n_threads=threads))


def ask_the_plain_model(questions: Sequence[str], *, cache: Path, threads: int | None) -> dict[str, str]:
    """The plain model's greedy answer to each question, asking only those that are not in `cache`."""
    answers: dict[str, str] = json.loads(cache.read_text(encoding="utf-8")) if cache.exists() else {}
    missing = [question for question in questions if question not in answers]
    sampling = SamplingParams(temperature=0.0, max_tokens=DISTIL_TOKENS)
    if missing:
        with Engine.load(smollm2(), config=engine_config(threads)) as engine:
            asked = [[{"role": "user", "content": question}] for question in missing]
            found = engine.generate(asked, sampling=sampling)
            answers.update({question: answer.text for question, answer in zip(missing, found, strict=True)})
        cache.write_text(json.dumps(answers, indent=1), encoding="utf-8")
    return answers


def write_rows(file: Path, *, num_rows: int, cache: Path, threads: int | None) -> int:
    """Ask the plain model evenly chosen questions and write as many rows as there are usable answers, at most `num_rows`."""
    every = training_questions()
    refuse_shared_subjects(every, load_held_out_questions())
    num_asked = min(len(every), 8 * num_rows // 5)  # two of three answers have a usable first sentence
    questions = [every[len(every) * at // num_asked] for at in range(num_asked)]
    answers = ask_the_plain_model([question.text for question in questions], cache=cache, threads=threads)
    rows = [
        {"question": question.text, "answer": json.dumps({"answer": sentence, "topic": question.topic})}
        for question in questions
        if (sentence := first_sentence(answers[question.text])) is not None
    ]
    kept = [rows[len(rows) * at // min(num_rows, len(rows))] for at in range(min(num_rows, len(rows)))]
    file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return len(kept)


def shares_in_form(pair: Path, weights: list[float], *, threads: int | None) -> dict[str, float]:
    """The share of held-out questions that the pair answers in its form, by weight; the base is the reference."""
    reference = smollm2()
    questions = [[{"role": "user", "content": question}] for question in load_held_out_questions()]
    sampling = SamplingParams(temperature=0.0, max_tokens=ANSWER_TOKENS)
    shares: dict[str, float] = {}
    with Engine.load(
        reference, pairs={"json": TunedPair(tuned=str(pair), reference=reference)}, config=engine_config(threads)
    ) as engine:
        for weight in weights:
            answers = engine.generate(questions, sampling=sampling, reward_weights=weight)
            shares[str(weight)] = round(behaviour_score([answer.text for answer in answers]), 4)
    return shares


def main(
    work: Annotated[Path, typer.Option(help="Folder for answers, rows and the pair.")] = Path("build/tune_smollm2"),
    num_rows: Annotated[int, typer.Option(help="Rows to train on, with those held out.")] = 200,
    epochs: Annotated[float, typer.Option(help="As of `eft tune`.")] = 3.0,
    lr: Annotated[float | None, typer.Option(help="As of `eft tune`.")] = None,
    keep_content: Annotated[str, typer.Option(help="As of `eft tune`.")] = DEFAULT_KEEP_CONTENT,
    seed: Annotated[int, typer.Option(help="As of `eft tune`.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Of the processor; all by default.")] = None,
) -> None:
    """Make the rows, tune, and measure; the last line is JSON."""
    from eft_tuning.command import tune  # needs the extra `tune`

    work.mkdir(parents=True, exist_ok=True)
    rows, pair = work / "chats.jsonl", work / f"pair-{keep_content}-{seed}"
    count = write_rows(rows, num_rows=num_rows, cache=work / "distilled.json", threads=threads)
    times: dict[str, float] = {}
    if not (pair / "tuning.json").exists():  # else only the shares are measured again
        started, computed = time.perf_counter(), time.process_time()
        tune(
            rows,
            reference=reference_file(smollm2()),
            out=pair,
            epochs=epochs,
            lr=lr,
            seed=seed,
            keep_content=keep_content,
            threads=threads,
        )
        times = {
            "tune_s": round(time.perf_counter() - started, 1),
            "tune_processor_s": round(time.process_time() - computed, 1),
        }
    told: dict[str, Any] = json.loads((pair / "tuning.json").read_text(encoding="utf-8"))
    result = {
        "rows": count,
        "settings": told["settings"],
        "outcome": told["outcome"],
        "behaviour": told.get("behaviour"),
        **times,
        "share_with_form": shares_in_form(pair, [0.0, 0.5, 1.0, 2.0], threads=threads),
        "num_questions": len(load_held_out_questions()),
        "threads_of_tuning": torch.get_num_threads(),
    }
    finish("tune_smollm2", result)


def reference_file(member: Any) -> str:
    """The .gguf file of a member, as `--reference` takes it."""
    return str(Path(member.source) / member.gguf_file) if member.gguf_file else str(member.source)


if __name__ == "__main__":
    typer.run(main)
