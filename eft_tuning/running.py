"""`eft tune` behind its options: rows, training, what came of it."""

from __future__ import annotations

import gc
import os
import signal
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.scorers import Scorer
from eft_tuning.asking import ask_trio, behaviour, form_scorer, load_pair, rewritten
from eft_tuning.checking import check_delta
from eft_tuning.models import Planned, load_reference, plan_reference
from eft_tuning.preparing import Data, answer_rows, held_rows, preference_rows, read_data
from eft_tuning.saving import CHECKPOINTS, fingerprint, open_run, write_json
from eft_tuning.settings import DEFAULT_KEEP_CONTENT, LEARNING_RATES, TuningSettings
from eft_tuning.stages import Reporter
from eft_tuning.telling import (
    data_in_words,
    how_to_ask,
    outcome_in_words,
    teller,
    versions,
)
from eft_tuning.training import Outcome, train

TUNING_FILE = "tuning.json"
ANSWERS_FILE = "rewritten.jsonl"
"""Answers of the teacher; of an interrupted run they are not asked for again."""


ONLY_FOR = {
    "beta": "dpo",
    "teacher": "rewrite",
    "content_pattern": "hold",
    "form_weight": "hold",
    "content_weight": "hold",
    "content_at": "hold",
    "told_weight": "hold",
}
"""Options that mean something in one way of training alone."""


@dataclass(frozen=True)
class Asked:
    """What `eft tune` was asked for."""

    chats: Path
    reference: str
    out: Path
    settings: dict[str, Any]
    """Fields of `TuningSettings`; what is None is decided by what the file holds."""
    held_out: Path | None = None
    held_out_share: float = 0.1
    base: str | None = None
    teacher: str | None = None
    pattern: str | None = None
    schema: Path | None = None
    check: str | None = None
    threads: int | None = None
    restart: bool = False
    dry_run: bool = False
    measure: bool = True


def run(asked: Asked) -> int:
    """Tune, or check, and tell what came of it.

    Returns:
        The exit status: 0, or 128 and the number of the signal that ended it.

    Raises:
        EFTError: of any kind; every message says what to do.
    """
    console = Console(stderr=True)
    _set_threads(asked.threads)
    had_bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            warnings.filterwarnings(
                "ignore", message="Could not find a config file in"
            )  # of a .gguf file, where PEFT looks
            return _run(asked, console)
    except KeyboardInterrupt:  # while nothing trains, or for the second time
        teller(console)("interrupted; the same command goes on from the last checkpoint, if there is one")
        return 128 + signal.SIGINT
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()


def _run(asked: Asked, console: Console) -> int:
    form = form_scorer(pattern=asked.pattern, schema=asked.schema)
    given = {name: value for name, value in asked.settings.items() if value is not None}
    settings = TuningSettings(**given)
    planned = plan_reference(asked.reference, dtype=settings.dtype)
    data = read_data(
        asked.chats,
        planned.tokenizer,
        held_out=asked.held_out,
        held_out_share=asked.held_out_share,
        max_length=min(settings.max_length, planned.context_len),
        seed=settings.seed,
        tell=teller(console),
    )
    settings = _decided(given, asked.teacher, data)
    teller(console)(data_in_words(data))
    if asked.dry_run:
        return 0
    if asked.check is not None:
        return _check(asked.check, planned, data)
    asked.out.mkdir(parents=True, exist_ok=True)
    data, outcome = _train(planned, data, asked, settings, form, console)
    if outcome.interrupted_by is not None:
        teller(console)(
            f"interrupted at step {outcome.steps} of {outcome.planned_steps}; the same command goes on from there"
        )
        return 128 + outcome.interrupted_by
    told = {
        "reference": asked.reference,
        "kind": _kind(data),
        "settings": settings.model_dump(mode="json"),
        "data": {
            "file": asked.chats.name,
            "fingerprint": fingerprint(data.train),
            "held_out_fingerprint": fingerprint(data.held_out),
            **data.counts(),
        },
        "outcome": asdict(outcome),
        "versions": versions(),
    }
    write_json(asked.out / TUNING_FILE, told)
    answer = teller(Console())
    answer(outcome_in_words(outcome))
    if asked.measure and data.held_out:
        gc.collect()  # the trained model gives its memory back before the engine loads
        told["behaviour"] = _measure(asked, data, form, console, answer)
        write_json(asked.out / TUNING_FILE, told)
    for line in how_to_ask(str(asked.out), asked.reference, asked.base):
        answer(line)
    return 0


def _set_threads(threads: int | None) -> None:
    """As many as were asked for; without a word of the user or of OpenMP, one for each processor that may be used."""
    if threads is None and "OMP_NUM_THREADS" in os.environ:
        return
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or usable)


def _kind(data: Data) -> str:
    return "dpo" if data.is_preferences else "sft"


def _decided(given: dict[str, Any], teacher: str | None, data: Data) -> TuningSettings:
    """The settings, with what goes by the kind of the rows.

    Raises:
        InvalidOptionError: content is to be kept out of preferences, or an option is for another way of training.
    """
    kind = _kind(data)
    keeps = "off" if kind == "dpo" else DEFAULT_KEEP_CONTENT
    settings = TuningSettings(**{"learning_rate": LEARNING_RATES[kind], "keep_content": keeps, **given})
    if kind == "dpo" and settings.keep_content != "off":
        raise InvalidOptionError(
            f"--keep-content {settings.keep_content} is for dialogues; DPO is held to the reference by --beta: leave it out",
            option="keep_content",
            value=settings.keep_content,
        )
    meant = {"dpo"} if kind == "dpo" else {settings.keep_content}
    for option, place in ONLY_FOR.items():
        if (given | {"teacher": teacher}).get(option) is not None and place not in meant:
            where = "a file of preferences" if place == "dpo" else f"--keep-content {place}"
            raise InvalidOptionError(
                f"--{option.replace('_', '-')} is for {where} and would do nothing here; leave it out",
                option=option,
                value=teacher if option == "teacher" else given[option],
            )
    return settings


def _train(
    planned: Planned, data: Data, asked: Asked, settings: TuningSettings, form: Scorer | None, console: Console
) -> tuple[Data, Outcome]:
    """Train, with rows as the settings want them; also returns what was trained on."""
    tokenizer = planned.tokenizer
    teacher = asked.teacher or asked.reference
    described = {
        "kind": _kind(data),
        "reference": planned.name,
        "rows": fingerprint(data.train),
        "held_out": fingerprint(data.held_out),
        "weights_dtype": str(planned.dtype),
        **settings.model_dump(mode="json"),
        **({"teacher": teacher, "form": form and form.name} if settings.keep_content == "rewrite" else {}),
    }
    resume = open_run(asked.out, described, restart=asked.restart)
    if settings.keep_content == "rewrite":
        with Reporter(console).counting("answers rewritten") as on_progress:
            found = rewritten(
                data.train,
                teacher=teacher,
                cache=asked.out / ANSWERS_FILE,
                form=form,
                seed=settings.seed,
                on_progress=on_progress,
            )
        for line in found.in_words():
            teller(console)(line)
        data = Data(found.chats, data.held_out, data.findings)
        gc.collect()
    model = load_reference(planned)
    rows: Any
    held_out: Any
    if data.is_preferences:
        rows, held_out = (preference_rows(side, tokenizer) for side in (data.train, data.held_out))
    elif settings.keep_content == "hold":
        with Reporter(console).counting("rows read for what is form") as on_progress:
            rows, held_out = held_rows(
                data,
                model,
                tokenizer,
                settings,
                max_length=planned.context_len,
                work=asked.out / CHECKPOINTS,
                tell=teller(console),
                on_progress=on_progress,
            )
    else:
        rows, held_out = (answer_rows(side, tokenizer) for side in (data.train, data.held_out))
    return data, train(model, planned, rows, held_out, out=asked.out, settings=settings, resume=resume, console=console)


def _check(tuned: str, planned: Planned, data: Data) -> int:
    """Whether a delta carries facts."""
    if data.is_preferences:
        raise InvalidOptionError("--check reads dialogues, and the file holds preferences", option="check", value=tuned)
    console = Console(stderr=True)
    with Reporter(console).counting("rows read") as on_progress:
        report = check_delta(tuned, planned, data.train, data.held_out, on_progress=on_progress)
    answer = teller(Console())
    for line in report.in_words():
        answer(line)
    return 0


def _measure(
    asked: Asked, data: Data, form: Scorer | None, console: Console, answer: Callable[[str], None]
) -> dict[str, Any]:
    """How the tuned small model answers, and where there is a base, a few answers of the trio."""
    train_chats, held_out = (
        [row.as_chats()[0] if data.is_preferences else row for row in side] for side in (data.train, data.held_out)
    )
    with load_pair(asked.out, asked.reference, base=asked.base) as engine:
        with Reporter(console).counting("held-out questions answered") as on_progress:
            report = behaviour(engine, held_out, train_chats, form=form, on_progress=on_progress)
        for line in report.in_words():
            answer(line)
        for trio in ask_trio(engine, held_out) if asked.base else ():
            for line in trio.in_words():
                answer(line)
    return report.as_json()
