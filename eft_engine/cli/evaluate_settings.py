"""What the options of `eft eval` mean: settings, members, scorers."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eft_engine.cli import trio_options as options
from eft_engine.config import CompositionOptions, Pair, resolve_weights
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.scorers import ExactMatch, Judge, PatternMatch, SchemaMatch, Scorer
from eft_engine.evaluation.settings import Setting, Weights, members_alone

SCORERS = ("exact", "contains", "regex", "schema", "judge")


def parse_setting(text: str) -> Weights:
    """`0.5` for every pair, a schedule in JSON, or `brief=0.25,detailed=0.75`.

    >>> parse_setting("0.5"), parse_setting("brief=0.25,detailed=0.75")
    (0.5, {'brief': 0.25, 'detailed': 0.75})
    """
    weights = options.parse_weights(options.split_weights(text))
    if weights is None:
        raise InvalidOptionError("a setting must not be empty; give a number", option="weight", value=text)
    return weights


def for_pairs(setting: Weights, pairs: Mapping[str, Pair], formula: CompositionOptions) -> Weights:
    """A setting as the engine takes it: where there are only prompt pairs, one weight is for these.

    Raises:
        UnknownPairError: it names a pair that there is not.
    """
    resolve_weights(setting, {name: own.weight for name, own in {**formula.prompt_pairs, **pairs}.items()})
    if pairs or not formula.prompt_pairs or isinstance(setting, Mapping) or setting is None:
        return setting
    return dict.fromkeys(formula.prompt_pairs, setting)


def base_alone(pairs: Mapping[str, Pair], formula: CompositionOptions) -> Weights:
    """Weight 0 for everything; where there are prompt pairs, by name, since one weight does not mean them."""
    return dict.fromkeys([*pairs, *formula.prompt_pairs], 0.0) if formula.prompt_pairs else 0.0


def choose_members(choice: options.TrioChoice, named: Sequence[str] | None, *, wanted: bool) -> list[Setting]:
    """Members that answer alone: those that are named, or the models of all pairs that have a reference; each model once.

    Raises:
        InvalidOptionError: there is no such member, or some are named and none is wanted.
    """
    if named and not wanted:
        raise InvalidOptionError("--member names members and --no-members wants none; leave one out", option="member")
    models: dict[str, Any] = {}
    usual = []
    for name, pair in choice.pairs.items():
        models[f"{name}.tuned"] = (pair.tuned, pair.reference) if pair.reference is not None else pair.tuned
        if pair.reference is not None:
            models[f"{name}.reference"] = pair.reference
            usual += [f"{name}.tuned", f"{name}.reference"]
    if not wanted:
        return []
    known = members_alone({name: models[name] for name in usual}, base=choice.base)
    if not named:
        return known
    found = []
    for name in named:
        full = f"{next(iter(choice.pairs))}.{name}" if len(choice.pairs) == 1 and "." not in name else name
        if full not in models:
            raise InvalidOptionError(
                f"--member: there is no {name!r}; members are {', '.join(models) or 'none, as there is no pair'} (the base "
                "alone is weight 0)",
                option="member",
                value=name,
            )
        found += members_alone({full: models[full]}, base=None) if len(choice.pairs) == 1 else [Setting(member=full)]
    return found


def default_scorers(*, pattern: str | None, schema: Path | None, judge: str | None) -> list[str]:
    """The scorers that the given options are for; without any, whether the expected answer occurs."""
    given = [name for name, value in (("regex", pattern), ("schema", schema), ("judge", judge)) if value is not None]
    return given or ["contains"]


def make_scorer(
    name: str,
    *,
    pattern: str | None,
    schema: Path | None,
    judge: str | None,
    criterion: str,
    fold_accents: bool = False,
) -> Scorer:
    """The scorer of a name.

    Raises:
        InvalidOptionError: there is none of this name, or its option is missing or wrong.
    """
    if name == "exact":
        return ExactMatch(fold_accents=fold_accents)
    if name == "contains":
        return ExactMatch(anywhere=True, name="contains", fold_accents=fold_accents)
    if name == "regex":
        return PatternMatch(pattern, fold_accents=fold_accents)
    if name == "schema":
        if schema is None:
            raise InvalidOptionError("the schema scorer needs --schema FILE", option="schema")
        try:
            return SchemaMatch(json.loads(schema.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InvalidOptionError(f"cannot read the schema {schema}: {error}", option="schema") from None
    if name == "judge":
        if judge is None:
            raise InvalidOptionError("the judge scorer needs --judge MODULE:NAME, for example my_judge:model")
        return Judge(load_judge(judge), criterion)
    raise InvalidOptionError(f"there is no scorer {name!r}; scorers: {', '.join(SCORERS)}", option="scorer", value=name)


def load_judge(name: str) -> Any:
    """The chat model that MODULE:NAME means; a class or function is called without arguments.

    Raises:
        InvalidOptionError: it cannot be imported, or what was found cannot be asked.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidOptionError(
            f"cannot load the judge {name!r} ({error}); write MODULE:NAME, for example my_judge:model",
            option="judge",
            value=name,
        ) from None
    model = found() if isinstance(found, type) or not hasattr(found, "invoke") else found
    if not hasattr(model, "invoke"):
        raise InvalidOptionError(
            f"the judge {name!r} is a {type(model).__name__} without invoke(); give a LangChain chat model",
            option="judge",
            value=name,
        )
    return model
