"""Before a bake begins: is there something to bake, prompts, room, a vocabulary that the base has, and a folder that is free."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eft_engine.config import MemberConfig, Pair, resolve_weights
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.scorers import Judge, Scorer
from eft_engine.weights import as_json, is_off, is_schedule, weights_as_json
from eft_tuning.bake.prompts import Ask
from eft_tuning.bake.report import WORK
from eft_tuning.bake.settings import BakeSettings

BYTES_PER_TOLD_TOKEN = 18
"""Of a file of rows: an id and a log-probability as text."""


def described(base: MemberConfig, pairs: Mapping[str, Pair], settings: BakeSettings) -> dict[str, Any]:
    """The composition, as `bake.json` names it.

    Raises:
        InvalidOptionError: no weight is other than 0.
        UnknownPairError: a weight is of a pair that there is not.
    """
    prompt_pairs = settings.composition.prompt_pairs
    own = {name: pair.weight for name, pair in pairs.items()}
    prompts = {name: pair.weight for name, pair in prompt_pairs.items()}
    given = settings.reward_weights
    if isinstance(given, Mapping) and not is_schedule(given):
        weights = resolve_weights(given, own | prompts)
    else:
        weights = resolve_weights(given, own) | prompts
    if all(is_off(weight) for weight in weights.values()):
        raise InvalidOptionError(
            f"there is nothing to bake: {'every weight is 0' if weights else 'there is no pair'}, so the composition is the base "
            "itself; give --tuned and --reference (or --pair), and a --weight other than 0",
            option="weight",
            value=weights_as_json(weights),
        )
    variants = settings.composition.model_dump(mode="json", exclude_defaults=True)
    return {
        "base": base.source,
        "pairs": {name: pair.model_dump(mode="json", exclude_defaults=True) for name, pair in pairs.items()},
        "weights": weights_as_json(weights),
        **({"composition": variants} if variants else {}),
    }


def plain(settings: BakeSettings) -> dict[str, Any]:
    """Settings as JSON has them."""
    told = settings.model_dump(mode="json", exclude={"reward_weights", "composition"})
    given = settings.reward_weights
    if isinstance(given, Mapping) and not is_schedule(given):
        return told | {"reward_weights": {name: as_json(weight) for name, weight in given.items()}}
    return told | {"reward_weights": None if given is None else as_json(given)}  # type: ignore[arg-type]


def check_prompts(asks: Sequence[Ask], held_out: Sequence[Ask]) -> None:
    """Raises InvalidOptionError where there are none, or the same on both sides."""
    if not asks:
        raise InvalidOptionError("there are no prompts to learn from; the file must have one a line", option="prompts")
    if both := {ask.key() for ask in asks} & {ask.key() for ask in held_out}:
        raise InvalidOptionError(
            f"{len(both)} held-out prompts are also learnt from, so they would measure nothing; leave them out on one side",
            option="held_out",
            value=len(both),
        )


def check_scorers(scorers: Sequence[Scorer], held_out: Sequence[Ask]) -> None:
    """Raises InvalidOptionError where a held-out prompt lacks what a scorer compares with, before hours have gone by."""
    for scorer in scorers:
        if not isinstance(scorer, Judge):  # who answers only when asked
            for ask in held_out:
                scorer.score(ask.question, "")


def open_work(
    out: Path,
    told: Mapping[str, Any],
    asks: Sequence[Ask],
    held_out: Sequence[Ask],
    settings: BakeSettings,
    *,
    restart: bool,
) -> Path:
    """The folder of a run that is not over.

    Raises:
        InvalidOptionError: `out` holds an adapter, or the beginning of another bake.
    """
    folder, file = out / WORK, out / WORK / "run.json"
    prompts = json.dumps([[asdict(ask)["question"].model_dump(), ask.tools] for ask in (*asks, *held_out)], default=str)
    asked = {
        "composition": dict(told),
        "prompts": hashlib.sha256(prompts.encode("utf-8", "surrogatepass")).hexdigest()[:16],
        "settings": plain(settings),
    }
    wanted = json.loads(json.dumps(asked))
    if restart and folder.exists():
        shutil.rmtree(folder)
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        if known != wanted:
            differs = [name for name in wanted if known.get(name) != wanted[name]]
            raise InvalidOptionError(
                f"{out} holds the beginning of another bake (its {', '.join(differs)} differ); go on with what it was begun with, "
                "give another folder, or begin anew with --restart",
                option="out",
                value=str(out),
            )
        return folder
    if any(file for file in out.glob("*.safetensors") if not file.name.startswith("adapter_")):
        raise InvalidOptionError(
            f"{out} holds a model, and an adapter beside it would be taken for a part of it; give a folder of its own",
            option="out",
            value=str(out),
        )
    if (out / "adapter_config.json").exists() and not restart:
        raise InvalidOptionError(
            f"{out} holds an adapter already; give another folder, or replace it with --restart",
            option="out",
            value=str(out),
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asked), encoding="utf-8")
    except OSError as error:
        raise InvalidOptionError(f"cannot write to {out}: {error}", option="out", value=str(out)) from None
    return folder


def check_room(folder: Path, num_rows: int, settings: BakeSettings) -> None:
    """Raises InvalidOptionError where answers of full length would not fit."""
    needed = num_rows * settings.max_tokens * settings.top_k * BYTES_PER_TOLD_TOKEN * (1 + settings.rounds)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InvalidOptionError(
            f"{folder} has {free / 1e9:.1f} GB left, and answers of full length take {needed / 1e9:.1f} GB; lower --top-k, "
            "--max-tokens or the number of prompts, or give a folder on another disk",
            option="out",
            value=str(folder),
        )


def ends_of(engine: Any) -> list[int]:
    """The tokens at which answers end.

    Raises:
        InvalidOptionError: the composition writes tokens that the base does not have.
    """
    report = engine.report()
    if kept := report.vocabulary.kept:
        names = ", ".join(repr(token) for token in list(kept.values())[:5])
        raise InvalidOptionError(
            f"the composition can write {len(kept)} tokens that the base does not have ({names}), and an adapter on its linear "
            "layers cannot add them; bake with --tuned-only-tokens refuse, or a base of the tuned model's vocabulary",
            option="tuned_only_tokens",
            value="keep",
        )
    return sorted({end.token_id for end in report.ends if end.unused is None})
