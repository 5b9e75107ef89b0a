"""The folder of a tuning: the adapter, what it came from, and the checkpoints of a run that is not over.

OUT/adapter_config.json, adapter_model.safetensors   what `TunedPair` takes
OUT/tuning.json                                      settings, data, results
OUT/loss.jsonl, loss.png                             the losses of every step
OUT/checkpoints/                                     while it trains; gone at the end
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.growing import replace_text

CHECKPOINTS = "checkpoints"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
COMPLETE = "complete"
"""A file in a checkpoint that is whole; one without it was being written when the run ended."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file in one piece: it is there whole, or as it was before."""
    replace_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


class Completed(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint when all of it is written."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        Path(args.output_dir, f"checkpoint-{state.global_step}", COMPLETE).touch()


def fingerprint(rows: Sequence[Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of rows, whatever they are made of."""
    text = json.dumps([asdict(row) for row in rows], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_run(out: Path, run: Mapping[str, Any], *, restart: bool) -> Path | None:
    """Prepare the folder for a run.

    Args:
        out: the folder, which may not exist.
        run: what the run is: settings and fingerprints of all that it reads, as JSON values.
        restart: begin anew whatever is there.

    Returns:
        The newest whole checkpoint of the same run, None: there is none.

    Raises:
        InvalidOptionError: a run with other arguments is there, finished or not, and the first of them that differ.
    """
    checkpoints, described = out / CHECKPOINTS, out / CHECKPOINTS / "run.json"
    if restart:
        shutil.rmtree(checkpoints, ignore_errors=True)
        for name in (*ADAPTER_FILES, "tuning.json", "loss.jsonl", "loss.png"):
            (out / name).unlink(missing_ok=True)
    elif (out / "adapter_config.json").exists():
        raise InvalidOptionError(
            f"{out} holds an adapter already; give another --out, or --restart to tune anew and replace it",
            option="out",
            value=str(out),
        )
    elif described.exists():
        before = json.loads(described.read_text(encoding="utf-8"))
        differing = differences(before, json.loads(json.dumps(run)))
        if differing:
            raise InvalidOptionError(
                f"{out} holds a run that was interrupted, and it was asked for otherwise: {'; '.join(differing)}. Ask for the same "
                "to go on, give another --out, or --restart to begin anew",
                option="out",
                value=str(out),
            )
        return newest_checkpoint(checkpoints)
    checkpoints.mkdir(parents=True, exist_ok=True)
    write_json(described, run)
    return None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Fields of two descriptions that differ, in words.

    >>> differences({"seed": 1, "rank": 8}, {"seed": 2, "rank": 8})
    ['seed was 1 and is 2']
    """
    return [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the highest step. One that is not whole is removed."""
    found: dict[int, Path] = {}
    for checkpoint in folder.glob("checkpoint-*"):
        step = checkpoint.name.removeprefix("checkpoint-")
        if (checkpoint / COMPLETE).exists() and step.isdigit():
            found[int(step)] = checkpoint
        else:
            shutil.rmtree(checkpoint)
    return found[max(found)] if found else None


def save_adapter(model: Any, out: Path) -> None:
    """Write the adapter of a PEFT model as safetensors, and its configuration, which comes last: where it is, all is there."""
    partial = out / ".adapter.partial"
    shutil.rmtree(partial, ignore_errors=True)
    # "auto" would ask the hub for the reference's vocabulary.
    model.save_pretrained(str(partial), safe_serialization=True, save_embedding_layers=False)
    for name in ADAPTER_FILES:
        os.replace(partial / name, out / name)
        (out / name).chmod(0o644)  # safetensors writes files for their owner alone
    shutil.rmtree(partial)


def close_run(out: Path) -> None:
    """The run is over: its checkpoints are no longer needed."""
    shutil.rmtree(out / CHECKPOINTS)
