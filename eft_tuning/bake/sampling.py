"""Answers of the composition, with what it says at each of their tokens; what is in the file is not asked again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eft_engine.config import ChatTemplate, PromptOptions, SamplingParams
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.growing import whole_lines
from eft_engine.evaluation.teacher import Completed, TeacherRow, read_rows, score_rows
from eft_tuning.bake.prompts import Ask
from eft_tuning.bake.settings import BakeSettings
from eft_tuning.stages import Reporter

if TYPE_CHECKING:
    from eft_engine.engine.engine import Engine

CHUNK = 64
"""Answers between two writings."""


def read_options(ask: Ask, settings: BakeSettings) -> tuple[PromptOptions, PromptOptions]:
    """How the composition reads a prompt, and how the one who learns from it will."""
    read = ask.options(settings.prompt_options)
    learnt = read.model_copy(update={"base": ChatTemplate(of="base")}) if settings.template == "base" else read
    return read, learnt


def collect(
    engine: Engine,
    asks: Sequence[Ask],
    settings: BakeSettings,
    *,
    path: Path,
    num_samples: int,
    seed: int,
    title: str,
    reporter: Reporter,
) -> list[TeacherRow]:
    """Rows of `num_samples` answers to each prompt; `path` keeps them.

    Raises:
        InvalidOptionError: the file cannot be written.
        RequestError, GenerationError: as from `Engine.generate`; prompts that are there already are kept.
    """
    rows = kept_rows(path)
    wanted = [index for index in range(len(asks) * num_samples) if index not in rows]
    with reporter.stage(title, len(asks) * num_samples) as advance:
        advance(len(rows), "")
        for start in range(0, len(wanted), CHUNK):
            chunk = wanted[start : start + CHUNK]
            texts = _answered(engine, asks, chunk, settings, num_samples=num_samples, seed=seed)
            found = score_all(engine, texts, settings)
            append(path, found)
            rows.update({row.index: row for row in found})
            advance(len(rows), "")
    return [rows[index] for index in sorted(rows)]


def _answered(
    engine: Engine, asks: Sequence[Ask], indices: Sequence[int], settings: BakeSettings, *, num_samples: int, seed: int
) -> list[Completed]:
    asked = [asks[index // num_samples] for index in indices]
    options = [read_options(ask, settings) for ask in asked]
    answers = engine.generate(
        [ask.prompt for ask in asked],  # type: ignore[arg-type]  # raw and chat prompts may be mixed
        sampling=[
            SamplingParams(max_tokens=settings.max_tokens, temperature=settings.temperature, seed=seed + index)
            for index in indices
        ],
        reward_weights=[settings.reward_weights] * len(asked),
        composition=settings.composition,
        prompt_options=[read for read, _ in options],
    )
    return [
        Completed(
            ask.prompt,
            answer.token_ids,
            index,
            answer.finish_reason,
            tuple(engine.prompt_ids(ask.prompt, prompt_options=learnt)),
            read,
        )
        for ask, answer, index, (read, learnt) in zip(asked, answers, indices, options, strict=True)
    ]


def score_all(engine: Engine, texts: Sequence[Completed], settings: BakeSettings) -> list[TeacherRow]:
    """What the composition of the settings says of texts."""
    return score_rows(
        engine,
        texts,
        top_k=settings.top_k,
        reward_weights=settings.reward_weights,
        composition=settings.composition,
    )


def kept_rows(path: Path) -> dict[int, TeacherRow]:
    """The rows of a file by index; a last line that an interruption cut is taken off."""
    return {row.index: row for row in read_rows(path)} if whole_lines(path) else {}


def append(path: Path, rows: Sequence[TeacherRow]) -> None:
    """Add rows to a file.

    Raises:
        InvalidOptionError: it cannot be written, as when the disk is full.
    """
    text = "".join(json.dumps(row.as_json()) + "\n" for row in rows)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InvalidOptionError(
            f"cannot write {path}: {error}; what was written stays, so the same command goes on once there is room",
            option="out",
            value=str(path),
        ) from None
