"""Where a trio comes from: enough to load it, to say beforehand what it will be, and to find it again in another process."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eft_engine import EngineConfig, MemberConfig, Term, TunedPair
from eft_engine.config import Options, Pair
from eft_engine.errors import InvalidOptionError
from eft_engine.forbidding import refuse_if_forbidden

if TYPE_CHECKING:
    from eft_engine import Engine


@dataclass(frozen=True)
class TrioSource:
    """A preset, or a base with its pairs by name; and how they are held."""

    preset: str | None
    base: MemberConfig | None
    pairs: Mapping[str, Pair] = field(default_factory=dict)
    config: EngineConfig = field(default_factory=EngineConfig)

    @classmethod
    def of(
        cls,
        *,
        base: str | MemberConfig | Mapping[str, Any] | None = None,
        tuned: str | MemberConfig | Mapping[str, Any] | None = None,
        reference: str | MemberConfig | Mapping[str, Any] | None = None,
        pairs: Mapping[str, Any] | None = None,
        preset: str | None = None,
        engine_config: EngineConfig | Mapping[str, Any] | None = None,
    ) -> TrioSource:
        """Of the arguments that `shared_backend` takes.

        Raises:
            InvalidOptionError: they contradict each other or are incomplete.
        """
        config = engine_config if isinstance(engine_config, EngineConfig) else EngineConfig(**(engine_config or {}))
        chosen = _pairs(tuned, reference, pairs)
        if preset is not None and (base is not None or chosen):
            raise InvalidOptionError(
                "preset names a whole trio; do not combine it with base, tuned, ...", option="preset"
            )
        if preset is None and base is None:
            raise InvalidOptionError("name the large model: base=..., or preset=...", option="base")
        return cls(preset, None if base is None else as_member(base, "base"), chosen, config)

    @property
    def name(self) -> str:
        """What reports call the model."""
        return self.preset or ("" if self.base is None else self.base.source)

    @functools.cached_property
    def key(self) -> str:
        """The same for sources that make the same engine, in whatever way they are written, and for no others."""
        named = {
            "preset": self.preset,
            "base": self.base,
            "pairs": dict(self.pairs),
            "set": {
                name: sorted(pair.tuned.model_fields_set) for name, pair in self.pairs.items()
            },  # see `resolve_pair`
            "config": self.config,
        }
        return json.dumps(named, sort_keys=True, default=_plain)

    @property
    def members(self) -> tuple[MemberConfig, dict[str, Pair]]:
        """The base and the pairs; a preset is looked up.

        Raises:
            InvalidOptionError: there is no such preset.
            ModelNotFoundError: its models are not installed.
        """
        if self.base is not None:
            return self.base, dict(self.pairs)
        from eft_engine import find_preset

        preset = find_preset(str(self.preset))
        return preset.base(), preset.pairs()

    def load(self) -> Engine:
        """The engine. Errors: as for `Engine.load`."""
        refuse_if_forbidden(self.name)
        from eft_engine import Engine

        base, pairs = self.members
        return Engine.load(base, pairs=pairs, config=self.config)

    def context_len(self) -> int:
        """The engine's, from configurations alone. Errors: as for `context_len_of`."""
        from eft_engine import context_len_of

        return context_len_of(*self.members, self.config)

    def check(self) -> None:
        """Find what is wrong with the trio before any weight is read: what is missing, cannot be run, or does not fit together.

        Raises:
            LoadError, VocabularyMismatchError, InvalidOptionError: as for `Engine.load`.
        """
        from eft_engine import inspect_trio
        from eft_engine.errors import UnsupportedModelError

        for member in inspect_trio(*self.members, self.config).members:
            if member.unsupported is not None:
                raise UnsupportedModelError(
                    f"{member.name}: {member.source}: {member.unsupported}", member=member.name, source=member.source
                )


def _plain(value: object) -> object:
    """Options as all of their fields; what is not JSON, such as a quantiser's configuration, in its own words."""
    if isinstance(value, Options):
        return {name: getattr(value, name) for name in type(value).model_fields}
    return f"{type(value).__name__} {value!r}"


def as_member(value: object, name: str) -> MemberConfig:
    """A source, or options with a source among them, as a `MemberConfig`. Raises InvalidOptionError for anything else."""
    match value:
        case MemberConfig():
            return value
        case str():
            return MemberConfig(source=value)
        case Mapping():
            return MemberConfig(**value)
    raise InvalidOptionError(
        f"{name} is a hub id, a folder, a .gguf file, a MemberConfig or a mapping of its fields, got {value!r}",
        option=name,
        value=value,
    )


def _pairs(tuned: object, reference: object, pairs: Mapping[str, Any] | None) -> dict[str, Pair]:
    if (tuned is None) != (reference is None):
        raise InvalidOptionError("tuned and reference belong together; give both", option="tuned")
    chosen: dict[str, Pair] = {}
    if tuned is not None:
        chosen["tuned"] = TunedPair(as_member(tuned, "tuned"), as_member(reference, "reference"))
    for name, pair in (pairs or {}).items():
        match pair:
            case TunedPair() | Term():
                chosen[name] = pair
            case Mapping() if "model" in pair:
                chosen[name] = Term(**pair)
            case Mapping() if {"tuned", "reference"} <= set(pair):
                chosen[name] = TunedPair(**pair)
            case (first, second):
                chosen[name] = TunedPair(
                    as_member(first, f"the tuned model of pair {name!r}"),
                    as_member(second, f"the reference of pair {name!r}"),
                )
            case _:
                raise InvalidOptionError(
                    f"pair {name!r} must be a TunedPair, a Term, a mapping of tuned and reference (or of model), or "
                    f"(tuned, reference), got {pair!r}",
                    option="pairs",
                    value=pair,
                )
    return chosen
