"""lm-evaluation-harness over two presets at several weights: in this process, through `eft serve`, and on the base alone as its own
model `hf` has it. Do all say the same log-probabilities where they should?

    .venv-lm-eval/bin/python -m benchmarks.lm_eval_weights [--preset atlas] [--limit 4]

Tasks are local files (Atlas' held-out facts, one of four answers, and the answer in the model's own words), with each preset's chat
template. `make test-lm-eval` makes the environment.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.report import finish
from benchmarks.smollm2 import separate_trio
from eft_engine.zoo.atlas import load_fact_questions
from eft_engine.zoo.presets import ZOO
from eft_integrations.lm_eval.model import TrioLM
from tests.server.process import ServerProcess

WEIGHTS = (0.0, 0.5, 1.0)
PAIRS = {"atlas": "assistant", "smollm2-json": "json"}
CHOICES, ANSWERS = "facts_choices", "facts_answers"
DATA = """dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
TASKS = {
    CHOICES: """output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
""",
    ANSWERS: """output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 24
  do_sample: false
metric_list:
  - metric: exact_match
    regexes_to_ignore: ["^.*? is ", "\\\\W"]
""",
}

Scored = tuple[float, bool]


@dataclass(frozen=True)
class Told:
    """What one way of asking says: log-probabilities and whether greedy, by request, and answers."""

    way: str
    weight: float | None
    scores: list[Scored] | None
    texts: list[str]
    accuracy: float | None
    requests: list[tuple[str, str]]
    seconds: float


def write_tasks(folder: Path, limit: int) -> None:
    """The two tasks: every question with its answer and three others of its kind."""
    pick = random.Random(0)
    facts = load_fact_questions()
    lines: list[dict[str, Any]] = []
    for fact in facts[:limit]:
        others = sorted({own.answer for own in facts if own.group == fact.group} - {fact.answer})
        choices = pick.sample([fact.answer, *pick.sample(others, 3)], 4)
        lines.append({"question": fact.question, "choices": choices, "answer": choices.index(fact.answer)})
    file = folder / "facts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{DATA.format(file=file)}{text}", encoding="utf-8")


def told(way: str, weight: float | None, model: Any, folder: Path, names: Sequence[str], arguments: Any = None) -> Told:
    """Run tasks."""
    began = time.perf_counter()
    found = lm_eval.simple_evaluate(
        model, model_args=arguments, tasks=list(names), log_samples=True, bootstrap_iters=0, apply_chat_template=True,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False), verbosity="ERROR",
    )  # fmt: skip
    seconds = time.perf_counter() - began
    samples = {name: sorted(found["samples"][name], key=lambda own: own["doc_id"]) for name in names}
    scored = samples.get(CHOICES, [])
    return Told(
        way,
        weight,
        [(own[0][0], own[0][1]) for sample in scored for own in sample["resps"]] if scored else None,
        [sample["resps"][0][0] for sample in samples.get(ANSWERS, [])],
        found["results"][CHOICES]["acc,none"] if scored else None,
        [(asked[0], asked[1]) for sample in scored for asked in sample["arguments"]],
        seconds,
    )


def models_of(preset: str) -> tuple[list[Any], Any]:
    """Base, tuned and reference as transformers has them, and the tokenizer."""
    if preset != "atlas":
        trio = separate_trio()
        return [trio.base, trio.tuned, trio.reference], trio.tokenizer
    folders = [str(ZOO / "atlas" / name) for name in ("base", "assistant", "reference")]
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in folders]
    return models, AutoTokenizer.from_pretrained(folders[0])


@torch.inference_mode()
def judged(models: Sequence[Any], before: list[int], behind: list[int], weight: float) -> Scored:
    """What three models say that are composed by hand."""
    ids = torch.tensor([[*before, *behind]])
    base, tuned, reference = (
        model(ids).logits[0, len(before) - 1 : -1].float().log_softmax(dim=-1) for model in models
    )
    composed = (base + weight * (tuned - reference)).log_softmax(dim=-1)
    wanted = torch.tensor(behind)
    return float(composed.gather(-1, wanted[:, None]).sum()), bool((composed.argmax(dim=-1) == wanted).all())


def on_the_base(preset: str, folder: Path, num_judged: int) -> tuple[Told, dict[float, list[Scored]]]:
    """What the harness's own `hf` says of the base, and what the judge says of the first requests at every weight."""
    models, tokenizer = models_of(preset)
    own = HFLM(pretrained=models[0], tokenizer=tokenizer, device="cpu", batch_size=1)
    tokenizer.save_pretrained(folder / preset)  # with a remote tokenizer, the harness renders no chats for scoring
    plain = told("`hf`, base alone", None, own, folder, (CHOICES, ANSWERS))
    pairs = [own._encode_pair(*request) for request in plain.requests[:num_judged]]
    return plain, {weight: [judged(models, before, behind, weight) for before, behind in pairs] for weight in WEIGHTS}


@contextmanager
def serving(preset: str) -> Iterator[str]:
    """A real `eft serve` process."""
    server = ServerProcess(["--preset", preset, "--name", preset, "--port", "0", "--device", "cpu"])
    try:
        yield server.url
    finally:
        server.stop()


def all_of(preset: str, folder: Path, num_judged: int) -> tuple[list[Told], dict[float, list[Scored]]]:
    """Every way at every weight, the base alone first."""
    plain, judge = on_the_base(preset, folder, num_judged)
    gc.collect()
    rows = [plain]
    model = TrioLM(preset=preset, weight=0.0, device="cpu")
    with model.engine as engine:
        for weight in WEIGHTS:
            own = TrioLM(engine=engine, weight=weight)
            rows.append(told("`eft`, in process", weight, own, folder, (CHOICES, ANSWERS)))
    del model, own, engine
    gc.collect()
    with serving(preset) as url:
        for weight in WEIGHTS:
            arguments = {"model": f"{preset}@{PAIRS[preset]}={weight}", "max_length": 512}
            completions = {
                **arguments,
                "base_url": f"{url}/v1/completions",
                "tokenizer_backend": "huggingface",
                "tokenizer": str(folder / preset),
                "batch_size": 4,
            }
            rows.append(
                told("`local-completions`", weight, "local-completions", folder, (CHOICES, ANSWERS), completions)
            )
            chat = {**arguments, "base_url": f"{url}/v1/chat/completions"}
            rows.append(told("`local-chat-completions`", weight, "local-chat-completions", folder, (ANSWERS,), chat))
    return rows, judge


def furthest(mine: Sequence[Scored], others: Sequence[Scored]) -> float:
    """The largest difference of log-probabilities; infinite where the two do not agree what is greedy."""
    pairs = list(zip(mine, others, strict=False))
    if any(own[1] != other[1] for own, other in pairs):
        return float("inf")
    return max(abs(own[0] - other[0]) for own, other in pairs)


def row_of(preset: str, row: Told, rows: Sequence[Told], judge: dict[float, list[Scored]]) -> dict[str, Any]:
    """A line of the table. The judge, or `hf` where only the base counts, has the scores and answers to compare with."""
    plain = rows[0]
    same = plain if not row.weight else next(own for own in rows if own.weight == row.weight)
    against_judge = against_base = None
    if row.scores is not None:
        against_judge = furthest(row.scores, judge[row.weight or 0.0])
        against_base = furthest(row.scores, plain.scores or ()) if not row.weight else None
    return {
        "preset": preset,
        "way": row.way,
        "weight": row.weight,
        "accuracy": row.accuracy,
        "furthest from the judge": against_judge,
        "furthest from hf": against_base,
        "same answers": sum(a == b for a, b in zip(row.texts, same.texts, strict=True)) / len(row.texts),
        "an answer": row.texts[0],
        "seconds": row.seconds,
    }


def main() -> None:
    """Ask, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PAIRS), help="one of them alone")
    parser.add_argument("--limit", type=int, default=4, help="questions")
    parser.add_argument("--judged", type=int, default=8, help="requests that the judge reads")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        write_tasks(Path(name), given.limit)
        for preset in [given.preset] if given.preset else PAIRS:
            rows, judge = all_of(preset, Path(name), given.judged)
            found += [row_of(preset, row, rows, judge) for row in rows]
    table = Table(*found[0])
    for row in found:
        table.add_row(
            *("" if own is None else f"{own:.2g}" if isinstance(own, float) else str(own) for own in row.values())
        )
    Console(width=200, file=sys.stdout).print(table)
    finish("lm_eval_weights", {"limit": given.limit, "judged": given.judged, "rows": found})


if __name__ == "__main__":
    main()
