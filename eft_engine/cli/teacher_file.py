"""`eft score FILE --top-k 64 --out TEACHER`: what the composition says at every token of answers, for who learns from it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from eft_engine.config import CompositionOptions, RewardWeights, SamplingParams
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.teacher import Completed, TeacherRow, score_rows
from eft_engine.evaluation.texts import Text

if TYPE_CHECKING:
    from eft_engine.engine.engine import Engine

CHUNK = 64
"""Texts between two writings."""


@dataclass(frozen=True)
class Export:
    """How a file is written: `top_k` tokens at each position, and how the composition answers prompts without a completion."""

    top_k: int
    max_tokens: int
    temperature: float
    seed: int


def export(
    engine: Engine,
    texts: list[Text],
    out: Path,
    how: Export,
    *,
    reward_weights: RewardWeights,
    composition: CompositionOptions,
) -> int:
    """Write the file; gives the number of tokens in it. Until it is whole it is called `OUT.part`.

    Raises:
        InvalidOptionError: it cannot be written.
        RequestError, GenerationError: as from `Engine`.
    """
    part, num_tokens = out.with_name(f"{out.name}.part"), 0
    ends = sorted({end.token_id for end in engine.report().ends if end.unused is None})
    own = getattr(engine.tokenizer, "eos_token_id", None)
    end = own if own in ends else next(iter(ends), None)
    try:
        with part.open("w", encoding="utf-8") as file, _progress(len(texts)) as advance:
            for start in range(0, len(texts), CHUNK):
                indices = range(start, min(start + CHUNK, len(texts)))
                completed = _completed(
                    engine, texts, indices, how, end=end, reward_weights=reward_weights, composition=composition
                )
                rows: list[TeacherRow] = score_rows(
                    engine, completed, top_k=how.top_k, reward_weights=reward_weights, composition=composition
                )
                file.writelines(json.dumps(row.as_json()) + "\n" for row in rows)
                num_tokens += sum(len(row.completion_ids) for row in rows)
                advance(indices.stop)
        part.replace(out)
    except OSError as error:
        raise InvalidOptionError(f"cannot write {out}: {error}", option="out", value=str(out)) from None
    return num_tokens


def _completed(
    engine: Engine,
    texts: list[Text],
    indices: range,
    how: Export,
    *,
    end: int | None,
    reward_weights: RewardWeights,
    composition: CompositionOptions,
) -> list[Completed]:
    """Completions as tokens; an answer to messages ends its turn, a raw text goes on."""
    found: dict[int, Completed] = {}
    asked: list[int] = []
    for index in indices:
        text = texts[index]
        if text.completion is None:
            asked.append(index)
            continue
        closing = [end] if end is not None and text.question.prompt is None else []
        ids = (*engine.token_ids(text.completion), *closing)
        found[index] = Completed(text.question.as_prompt(), ids, index)
    prompts: Any = [texts[index].question.as_prompt() for index in asked]
    sampling = [
        SamplingParams(max_tokens=how.max_tokens, temperature=how.temperature, seed=how.seed + index) for index in asked
    ]
    answers: Any = (
        engine.generate(
            prompts, sampling=sampling, reward_weights=[reward_weights] * len(asked), composition=composition
        )
        if asked
        else []
    )
    for index, prompt, answer in zip(asked, prompts, answers, strict=True):
        found[index] = Completed(prompt, answer.token_ids, index, answer.finish_reason)
    return [found[index] for index in indices]


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on a terminal, else a line a chunk."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda done: sys.stderr.write(f"scored {done} of {total} texts\n")
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"scoring {total} texts", total=total)
        yield lambda done: progress.update(task, completed=done)
