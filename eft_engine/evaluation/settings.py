"""What is measured: a setting of the weights, or one member alone; and what tables call it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eft_engine.weights import SCHEDULES, RewardWeights, as_json, checked_weight, is_schedule, numbers_of

Weights = RewardWeights
"""One setting: a weight for every pair, a mapping by pair name, or None for the pairs' own weights."""


@dataclass(frozen=True)
class Setting:
    """A row of the table: the composition at some weights, or `member` (`base`, `NAME.tuned`, `NAME.reference`) alone.

    >>> Setting(0.5).name, Setting(member="chat.tuned").name, Setting(member="chat.tuned", called="tuned").name
    ('0.5', 'chat.tuned', 'tuned')
    """

    weights: Weights = None
    member: str | None = None
    called: str = ""

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.called or self.member or label_of(self.weights)

    @property
    def is_off(self) -> bool:
        """Whether all weights are 0: the base alone."""
        return self.member is None and self.weights is not None and not any(numbers_in(self.weights))

    def key(self) -> str:
        """What tells settings apart, whatever they are called."""
        return json.dumps([_as_json(self.weights), self.member], sort_keys=True, ensure_ascii=False)


def members_alone(members: Mapping[str, Any], *, base: Any) -> list[Setting]:
    """The models of pairs as rows, each model once and the base never; with one pair they are called `tuned` and `reference`.

    Args:
        members: by member name, whatever tells whether two are the same model.
        base: the same of the base.

    >>> [own.name for own in members_alone({"chat.tuned": "a", "chat.reference": "b"}, base="c")]
    ['tuned', 'reference']
    >>> models = {"brief.tuned": "a", "brief.reference": "c", "long.tuned": "d", "long.reference": "c"}
    >>> [own.name for own in members_alone(models, base="e")]
    ['brief.tuned', 'brief.reference', 'long.tuned']
    """
    one_pair = len({name.rpartition(".")[0] for name in members}) == 1
    seen = [base]
    found = []
    for name, model in members.items():
        if model not in seen:
            seen.append(model)
            found.append(Setting(member=name, called=name.rpartition(".")[2] if one_pair else ""))
    return found


def _as_json(weights: Weights) -> Any:
    if weights is None:
        return None
    if isinstance(weights, Mapping) and not is_schedule(weights):
        return {name: _as_json(value) for name, value in weights.items()}
    return as_json(checked_weight(weights, "every pair"))


def label_of(weights: RewardWeights) -> str:
    """Weights as text.

    >>> label_of(0.5), label_of({"brief": 0.25, "detailed": 0.75}), label_of(None)
    ('0.5', 'brief=0.25 detailed=0.75', 'own')
    >>> from eft_engine.weights import FirstTokens, Gate
    >>> label_of(Gate(by="kl", above=0.1)), label_of({"brief": FirstTokens(num_tokens=8)})
    ('gate(by=kl, above=0.1)', 'brief=first_tokens(num_tokens=8)')
    >>> label_of({"kind": "proportional", "factor": 2.0})
    'proportional(to=jensen_shannon, factor=2)'
    """
    if weights is None:
        return "own"
    if is_schedule(weights):
        schedule = checked_weight(weights, "every pair")
        assert isinstance(schedule, SCHEDULES), "a number is no schedule"
        said = {*schedule.model_dump(exclude_defaults=True), "to"}  # of a measure also the usual one
        told = (f"{name}={_told(getattr(schedule, name))}" for name in type(schedule).model_fields if name in said)
        return f"{schedule.kind}({', '.join(told)})"
    if isinstance(weights, Mapping):
        return " ".join(f"{name}={label_of(value)}" for name, value in weights.items())
    assert isinstance(weights, int | float), "what is no schedule and no mapping is a number"
    return f"{weights:g}"


def numbers_in(weights: RewardWeights) -> list[float]:
    """All numbers that weights can be.

    >>> numbers_in(0.5), numbers_in({"brief": 0.25, "detailed": 0.75})
    ([0.5], [0.25, 0.75])
    """
    if weights is None:
        return []
    if isinstance(weights, Mapping) and not is_schedule(weights):
        return [number for weight in weights.values() for number in numbers_in(weight)]
    return numbers_of(checked_weight(weights, "every pair"))


def _told(value: object) -> str:
    return (
        label_of(value) if isinstance(value, (int, float, *SCHEDULES)) and not isinstance(value, bool) else str(value)
    )
