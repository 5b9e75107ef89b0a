"""The way of a bake: answers of the composition -> what it says at their tokens -> an adapter that learns it -> what it keeps."""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eft_engine.config import ChatTemplate, EngineConfig, MemberConfig, Pair
from eft_engine.errors import LoadOutOfMemoryError
from eft_engine.evaluation.scorers import Scorer
from eft_tuning.bake.checks import check_prompts, check_room, check_scorers, described, ends_of, open_work, plain
from eft_tuning.bake.measure import Contestant, answered, speeds
from eft_tuning.bake.prompts import Ask
from eft_tuning.bake.report import BakeReport, write_report
from eft_tuning.bake.rows import TaughtRows
from eft_tuning.bake.sampling import collect
from eft_tuning.bake.settings import BakeSettings
from eft_tuning.bake.student import check_base, load_student, restore, save_adapter
from eft_tuning.stages import Reporter

DONE = "trained.json"
HELD_OUT_SEED = 500_000_000
"""Answers to held-out prompts are drawn with seeds from here on."""


def bake(
    base: str | MemberConfig,
    pairs: Mapping[str, Pair],
    asks: Sequence[Ask],
    held_out: Sequence[Ask],
    *,
    out: Path,
    settings: BakeSettings | None = None,
    scorers: Sequence[Scorer] = (),
    config: EngineConfig | None = None,
    restart: bool = False,
    keep_work: bool = False,
    reporter: Reporter | None = None,
) -> BakeReport:
    """Distil a composition into one LoRA of its base, and measure what is left of it. Interrupted, the same call goes on.

    Args:
        base, pairs, config: the trio, as for `Engine.load`.
        asks: prompts that the composition answers, to learn from.
        held_out: prompts that are never learnt from; may be empty, and then nothing is measured.
        out: folder of the adapter.
        settings: weights, sampling, adapter, training.
        scorers: what counts in greedy answers to held-out prompts.
        restart: begin anew, whatever `out` holds.
        keep_work: leave answers and checkpoints in `out/work`.
        reporter: where progress is told; stderr.

    Raises:
        InvalidOptionError: there is nothing to bake, no prompt, `out` holds something else, or the disk is too small.
        LoadError, VocabularyMismatchError, RequestError, GenerationError: as from `Engine`.
        TuningError: training failed.
    """
    from eft_engine.engine.engine import Engine

    settings, reporter, started = settings or BakeSettings(), reporter or Reporter(), time.monotonic()
    member = MemberConfig(source=base) if isinstance(base, str) else base
    check_base(member)
    told = described(member, pairs, settings)
    check_prompts(asks, held_out)
    check_scorers(scorers, held_out)
    folder = open_work(out, told, asks, held_out, settings, restart=restart)
    check_room(folder, len(asks) * settings.num_samples + len(held_out), settings)

    with Engine.load(member, pairs=pairs, config=config) as engine:
        ends = ends_of(engine)
        rows = collect(
            engine, asks, settings, path=folder / "answers.jsonl", num_samples=settings.num_samples, seed=settings.seed,
            title="the composition answers", reporter=reporter,
        )  # fmt: skip
        held_rows = collect(
            engine, held_out, settings, path=folder / "held_out.jsonl", num_samples=1, seed=HELD_OUT_SEED + settings.seed,
            title="and the held-out prompts", reporter=reporter,
        )  # fmt: skip
        report = BakeReport(told, len(asks), sum(len(row.completion_ids) for row in rows), len(held_out))
        if held_out:
            composed, alone = (
                answered(
                    engine, held_out, settings, scorers=scorers, reward_weights=weights, composition=composition,
                    title=title, reporter=reporter,
                )
                for title, weights, composition in (
                    ("measuring the composition", settings.reward_weights, settings.composition),
                    ("measuring the base", 0.0, None),
                )
            )  # fmt: skip
            report = replace(report, composed=composed, base=alone)
        template = _template(engine, settings)
    _warn_of_cut(rows, reporter)

    held = TaughtRows(held_rows, top_k=settings.top_k)
    student = load_student(member, settings, device=(config or EngineConfig()).device)
    report = _learn(student, rows, held, settings, folder=folder, report=report, reporter=reporter, asks=asks,
                    trio=(member, pairs, config), ends=ends)  # fmt: skip
    if report.interrupted_by is not None:
        return report
    if held_out:
        report = replace(report, **_agreements(student, held, settings))
    save_adapter(student, out)
    if template is not None:
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_report(out, replace(report, seconds=time.monotonic() - started), settings=plain(settings), ends=ends)
    del student
    gc.collect()  # the trainer and its model know each other; memory is for the engines now

    if held_out:
        report = _measure_baked(report, member, pairs, out, held_out, settings, scorers, config, reporter, template)
    report = replace(report, seconds=time.monotonic() - started)
    write_report(out, report, settings=plain(settings), ends=ends)
    if not keep_work:
        shutil.rmtree(folder)
    return report


def _learn(
    student: Any,
    rows: list[Any],
    held: TaughtRows,
    settings: BakeSettings,
    *,
    folder: Path,
    report: BakeReport,
    reporter: Reporter,
    asks: Sequence[Ask],
    trio: tuple[MemberConfig, Mapping[str, Pair], EngineConfig | None],
    ends: list[int],
) -> BakeReport:
    """The first training, on the composition's answers, and the rounds, on the adapter's own. A part that is done is read back."""
    from eft_tuning.bake.rounds import own_rows
    from eft_tuning.bake.training import train

    for part in range(settings.rounds + 1):
        done = folder / f"adapter-{part}"
        if (done / DONE).exists():
            restore(student, done)
            known = json.loads((done / DONE).read_text(encoding="utf-8"))
            report = replace(report, steps=report.steps + known["steps"], losses=(*report.losses, *known["losses"]))
            continue
        if part:
            rows = own_rows(
                student, asks, settings, trio=trio, ends=ends, path=folder / f"answers-{part}.jsonl", part=part,
                reporter=reporter,
            )  # fmt: skip
        outcome = train(
            student, rows, held, settings, folder=folder / f"checkpoints-{part}",
            kind=settings.round_divergence if part else settings.divergence,
            epochs=1.0 if part else settings.epochs,
            title=f"round {part}" if part else "the adapter learns", reporter=reporter,
        )  # fmt: skip
        report = replace(
            report,
            steps=report.steps + outcome.steps,
            losses=(*report.losses, *outcome.losses),
            interrupted_by=outcome.interrupted_by,
        )
        if outcome.interrupted_by is not None:
            return report
        save_adapter(student, done)
        told = {"steps": outcome.steps, "losses": outcome.losses}
        (done / DONE).write_text(json.dumps(told), encoding="utf-8")
    return report


def _agreements(student: Any, held: TaughtRows, settings: BakeSettings) -> dict[str, Any]:
    from eft_tuning.bake.training import agreement

    at_once = settings.rows_at_once
    return {
        "baked_agreement": agreement(student, held, rows_at_once=at_once),
        "base_agreement": agreement(student, held, rows_at_once=at_once, with_adapter=False),
    }


def _measure_baked(
    report: BakeReport,
    base: MemberConfig,
    pairs: Mapping[str, Pair],
    out: Path,
    held_out: Sequence[Ask],
    settings: BakeSettings,
    scorers: Sequence[Scorer],
    config: EngineConfig | None,
    reporter: Reporter,
    template: str | None,
) -> BakeReport:
    """The adapter as a server holds it: on the base alone, inside of its weights where they are no GGUF file's."""
    from eft_engine.engine.engine import Engine

    read = as_student(settings)
    with Engine.load(with_adapter(base, out), config=config) as engine:
        own = answered(
            engine, held_out, read, scorers=scorers, reward_weights=None, composition=None,
            title="measuring the adapter", reporter=reporter,
        )  # fmt: skip
    report = replace(report, baked=own)
    if not settings.num_speed:
        return report
    options = read.prompt_options
    if template is not None:  # the base may have none
        options = options.model_copy(update={"chat_template": ChatTemplate(jinja=template)})
    alone = read.model_copy(update={"prompt_options": options})
    try:
        with (
            Engine.load(base, pairs=pairs, config=config) as composed,
            Engine.load(base, config=config) as plain_base,
            Engine.load(with_adapter(base, out), config=config) as baked,
        ):
            contestants = [
                Contestant("composition", composed, settings, settings.reward_weights, settings.composition),
                Contestant("base", plain_base, alone),
                Contestant("baked", baked, read),
            ]
            found = speeds(contestants, held_out[: settings.num_speed], reporter=reporter)
    except LoadOutOfMemoryError as error:
        reporter.say(
            f"speed is not measured, since composition, base and adapter do not fit beside each other: {error}"
        )
        return report
    return replace(report, tokens_per_s=found)


def as_student(settings: BakeSettings) -> BakeSettings:
    """Settings under which the base with the adapter reads what it has learnt to read, when it is alone."""
    options = settings.prompt_options
    own = None if settings.template == "base" or isinstance(options.base, ChatTemplate) else options.base
    return settings.model_copy(update={"prompt_options": options.model_copy(update={"base": own})})


def with_adapter(base: MemberConfig, folder: Path) -> MemberConfig:
    """The base with the baked adapter: merged, so that it costs nothing; in llama.cpp it is an adapter of that program."""
    from eft_engine.models.sources import resolve_source

    is_gguf = resolve_source(base, role="base").gguf_file is not None
    return base.model_copy(update={"adapter": str(folder), "merge": None if is_gguf else True})


def _template(engine: Any, settings: BakeSettings) -> str | None:
    """The chat template that the adapter learns to answer behind; None: prompts are not rendered by one."""
    if settings.template == "base":
        found: str | None = engine.template_text(ChatTemplate(of="base"))
        return found
    rendering = settings.prompt_options.base or settings.prompt_options.chat_template
    return engine.template_text(rendering) if isinstance(rendering, ChatTemplate) else None


def _warn_of_cut(rows: Sequence[Any], reporter: Reporter) -> None:
    cut = sum(row.finish_reason == "length" for row in rows)
    if cut > len(rows) / 4:
        reporter.say(
            f"warning: {cut} of {len(rows)} answers were cut at --max-tokens; if the composition runs on without an end, its "
            "weight is too high, and the adapter learns that too"
        )
