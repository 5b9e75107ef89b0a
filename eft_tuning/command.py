"""`eft tune`: from a chat file to the adapter that `TunedPair` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eft_engine.errors import InvalidOptionError
from eft_tuning.settings import DEFAULT_KEEP_CONTENT, LEARNING_RATES, TuningSettings

DATA, TRAINING, MEASURE, MACHINE = "What is learned", "How it is learned", "What is measured", "On this machine"
DEFAULTS = {name: field.default for name, field in TuningSettings.model_fields.items()}


def tune(
    chats: Annotated[
        Path,
        typer.Argument(
            help="JSON Lines: messages, or prompt and completion, or question and answer, or ShareGPT's conversations; with "
            "prompt, chosen and rejected it is DPO."
        ),
    ],
    reference: Annotated[str, typer.Option(help="The small model before tuning: hub id, folder or .gguf file.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the adapter. An interrupted run goes on there by itself."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The large model: a few held-out questions are asked of the trio at the end.")
    ] = None,
    held_out: Annotated[Path | None, typer.Option(help="File of rows that are held out.", rich_help_panel=DATA)] = None,
    held_out_share: Annotated[
        float,
        typer.Option(help="Without that file: share of the rows that is held out; 0: none.", rich_help_panel=DATA),
    ] = 0.1,
    keep_content: Annotated[
        str | None,
        typer.Option(
            help=f"How facts stay out of the adapter: off, hold, rewrite; {DEFAULT_KEEP_CONTENT} by default.",
            metavar="off|hold|rewrite",
            rich_help_panel=DATA,
        ),
    ] = None,
    content_pattern: Annotated[
        str | None,
        typer.Option(
            help="With hold: a regular expression of what is content in an answer (its groups); without one it is found out.",
            rich_help_panel=DATA,
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="With rewrite: the model that answers; the reference by default.", rich_help_panel=DATA),
    ] = None,
    form_weight: Annotated[
        float | None,
        typer.Option(
            help=f"With hold: factor on the loss at tokens of the form; {DEFAULTS['form_weight']:g} by default.",
            rich_help_panel=DATA,
        ),
    ] = None,
    content_weight: Annotated[
        float | None,
        typer.Option(
            help=f"With hold: factor on the divergence at tokens of content; {DEFAULTS['content_weight']:g} by default.",
            rich_help_panel=DATA,
        ),
    ] = None,
    content_at: Annotated[
        float | None,
        typer.Option(
            help=f"With hold: the weight up to which content has to stay what it was; {DEFAULTS['content_at']:g} by default.",
            rich_help_panel=DATA,
        ),
    ] = None,
    told_weight: Annotated[
        float | None,
        typer.Option(
            help=f"With hold: factor on the divergence at tokens that are told; {DEFAULTS['told_weight']:g} by default.",
            rich_help_panel=DATA,
        ),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(
            help=f"Of DPO: how dear it is to leave the reference; {DEFAULTS['beta']:g} by default.",
            rich_help_panel=DATA,
        ),
    ] = None,
    max_length: Annotated[
        int, typer.Option(help="Longest row in tokens; longer ones are left out and told.", rich_help_panel=DATA)
    ] = DEFAULTS["max_length"],
    epochs: Annotated[float, typer.Option(help="Passes over the rows, at most.", rich_help_panel=TRAINING)] = DEFAULTS[
        "epochs"
    ],
    lr: Annotated[
        float | None,
        typer.Option(
            help=f"Highest learning rate; {LEARNING_RATES['sft']:g} by default, and {LEARNING_RATES['dpo']:g} for DPO.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    rank: Annotated[
        int, typer.Option(help="Rank of the adapter, which is on every linear layer.", rich_help_panel=TRAINING)
    ] = DEFAULTS["rank"],
    batch_size: Annotated[int, typer.Option(help="Rows of a step.", rich_help_panel=TRAINING)] = DEFAULTS["batch_size"],
    patience: Annotated[
        int, typer.Option(help="Held-out losses without a better one before it stops.", rich_help_panel=TRAINING)
    ] = DEFAULTS["patience"],
    seed: Annotated[int, typer.Option(help="Same seed, same adapter.", rich_help_panel=TRAINING)] = DEFAULTS["seed"],
    rows_at_once: Annotated[
        int, typer.Option(help="Rows of one pass; fewer take less memory.", rich_help_panel=MACHINE)
    ] = DEFAULTS["rows_at_once"],
    save_memory: Annotated[
        bool, typer.Option("--save-memory", help="Compute activations twice.", rich_help_panel=MACHINE)
    ] = DEFAULTS["save_memory"],
    dtype: Annotated[
        str,
        typer.Option(help="Of the weights: auto, float32, bfloat16.", rich_help_panel=MACHINE),
    ] = DEFAULTS["dtype"],
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the processor; all by default.", rich_help_panel=MACHINE)
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Regular expression that an answer in form matches.", rich_help_panel=MEASURE)
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="File with the JSON schema of an answer in form.", rich_help_panel=MEASURE)
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Ask the tuned model held-out questions at the end.", rich_help_panel=MEASURE)
    ] = True,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="TUNED",
            help="Train nothing: does this adapter (or model) carry facts that the reference does not know?",
            rich_help_panel=MEASURE,
        ),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, whatever --out holds.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the rows and train nothing.")] = False,
) -> None:
    """Tune a small model on a chat file: an adapter that carries its behaviour to a large one (docs/tuning.md)."""
    from eft_tuning.libraries import check_libraries

    if out is None and not dry_run and check is None:
        raise InvalidOptionError(
            "eft tune needs --out FOLDER, where the adapter goes (or --dry-run, or --check TUNED)", option="out"
        )
    check_libraries()
    from eft_tuning.running import Asked, run

    status = run(
        Asked(
            chats=chats,
            reference=reference,
            out=out or Path(),
            settings={
                "epochs": epochs,
                "learning_rate": lr,
                "rank": rank,
                "batch_size": batch_size,
                "rows_at_once": rows_at_once,
                "max_length": max_length,
                "patience": patience,
                "seed": seed,
                "dtype": dtype,
                "keep_content": keep_content,
                "form_weight": form_weight,
                "content_weight": content_weight,
                "content_at": content_at,
                "told_weight": told_weight,
                "content_pattern": content_pattern,
                "beta": beta,
                "save_memory": save_memory,
            },
            held_out=held_out,
            held_out_share=held_out_share,
            base=base,
            teacher=teacher,
            pattern=pattern,
            schema=schema,
            check=check,
            measure=measure,
            threads=threads,
            restart=restart,
            dry_run=dry_run,
        )
    )
    if status:
        raise typer.Exit(status)
