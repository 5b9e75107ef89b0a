"""What of a composition's gain an adapter keeps: answers to held-out prompts by composition, base and adapter, and their speed."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from eft_engine.config import CompositionOptions, RewardWeights, SamplingParams
from eft_engine.evaluation.intervals import Share, share_of
from eft_engine.evaluation.scorers import Scorer, marks_of
from eft_tuning.bake.prompts import Ask
from eft_tuning.bake.settings import BakeSettings
from eft_tuning.stages import Reporter

if TYPE_CHECKING:
    from eft_engine.engine.engine import Engine

CHUNK = 64
DRAWS = 2000
"""Of the bootstrap."""
LEAST_GAIN = 0.02
"""Below it there is no gain of which a part could be kept."""


@dataclass(frozen=True)
class Answered:
    """Greedy answers to the held-out prompts: marks by scorer, one an answer."""

    marks: dict[str, list[bool]]
    cut: Share
    mean_tokens: float

    def share(self, scorer: str) -> Share:
        """How many answers count."""
        return share_of(self.marks[scorer])

    def as_json(self) -> dict[str, Any]:
        """For `bake.json`."""
        return {
            "shares": {name: self.share(name).as_json() for name in self.marks},
            "cut": self.cut.as_json(),
            "mean_tokens": round(self.mean_tokens, 1),
        }


def answered(
    engine: Engine,
    asks: Sequence[Ask],
    settings: BakeSettings,
    *,
    scorers: Sequence[Scorer],
    reward_weights: RewardWeights,
    composition: CompositionOptions | None,
    title: str,
    reporter: Reporter,
) -> Answered:
    """Greedy answers to all prompts."""
    sampling = SamplingParams(temperature=0.0, max_tokens=settings.max_tokens)
    outputs: list[Any] = []
    with reporter.stage(title, len(asks)) as advance:
        for start in range(0, len(asks), CHUNK):
            chunk: Any = asks[start : start + CHUNK]
            outputs += engine.generate(
                [ask.prompt for ask in chunk],
                sampling=sampling,
                reward_weights=[reward_weights] * len(chunk),
                composition=composition,
                prompt_options=[ask.options(settings.prompt_options) for ask in chunk],
            )
            advance(len(outputs), "")
    by_answer = [marks_of(scorers, ask.question, output) for ask, output in zip(asks, outputs, strict=True)]
    return Answered(
        {scorer.name: [marks[scorer.name] for marks in by_answer] for scorer in scorers},
        share_of([output.finish_reason == "length" for output in outputs]),
        sum(len(output.token_ids) for output in outputs) / max(1, len(outputs)),
    )


@dataclass(frozen=True)
class Contestant:
    """An engine whose speed is measured, and how it is asked."""

    name: str
    engine: Engine
    settings: BakeSettings
    reward_weights: RewardWeights = None
    composition: CompositionOptions | None = None


def speeds(contestants: Sequence[Contestant], asks: Sequence[Ask], *, reporter: Reporter) -> dict[str, float]:
    """Tokens a second of one greedy answer at a time, the median of the prompts, by name. All engines answer a prompt before the
    next, so that whatever else the machine does slows them alike; the first prompt warms up.
    """
    found: dict[str, list[float]] = {own.name: [] for own in contestants}
    with reporter.stage("measuring speed", len(asks)) as advance:
        for place, ask in enumerate([*asks[:1], *asks]):
            for own in contestants:
                started = time.perf_counter()
                output = own.engine.generate(
                    ask.prompt,
                    sampling=SamplingParams(temperature=0.0, max_tokens=own.settings.max_tokens),
                    reward_weights=own.reward_weights,
                    composition=own.composition,
                    prompt_options=ask.options(own.settings.prompt_options),
                )
                if place:
                    found[own.name].append(len(output.token_ids) / (time.perf_counter() - started))
            advance(place, "")
    return {name: median(values) for name, values in found.items()}


@dataclass(frozen=True)
class Kept:
    """A part with its 95 % interval (bootstrap over questions); None where there is nothing to keep a part of."""

    value: float | None
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.value is None or self.interval is None:
            return "-"
        low, high = self.interval
        return f"{self.value:.0%} [{low:.0%}, {high:.0%}]"

    def as_json(self) -> dict[str, float] | None:
        """For `bake.json`."""
        if self.value is None or self.interval is None:
            return None
        low, high = self.interval
        return {"share": round(self.value, 4), "low": round(low, 4), "high": round(high, 4)}


def gain_kept(base: Sequence[bool], composed: Sequence[bool], baked: Sequence[bool], *, seed: int = 0) -> Kept:
    """(baked - base) / (composition - base) of the same questions.

    >>> gain_kept([False] * 40, [True] * 40, [True] * 30 + [False] * 10).value
    0.75
    >>> gain_kept([True] * 4, [True] * 4, [True] * 4).value is None
    True
    """
    return _part(baked, base, composed, seed=seed)


def level_kept(composed: Sequence[bool], baked: Sequence[bool], *, seed: int = 0) -> Kept:
    """What the adapter has, of what the composition has, on the same questions."""
    return _part(baked, [False] * len(baked), composed, seed=seed)


def _part(of: Sequence[bool], floor: Sequence[bool], ceiling: Sequence[bool], *, seed: int) -> Kept:
    """(of - floor) / (ceiling - floor), with the middle 95 % of what resampled questions give."""
    count = len(of)
    if count == 0 or (sum(ceiling) - sum(floor)) / count < LEAST_GAIN:
        return Kept(None)
    rows = [(int(own) - int(low), int(high) - int(low)) for own, low, high in zip(of, floor, ceiling, strict=True)]
    rng, drawn = random.Random(seed), []
    for _ in range(DRAWS):
        chosen = rng.choices(rows, k=count)
        whole = sum(high for _, high in chosen)
        if whole > 0:
            drawn.append(sum(own for own, _ in chosen) / whole)
    drawn.sort()
    whole = sum(high for _, high in rows)
    return Kept(
        sum(own for own, _ in rows) / whole,
        (drawn[int(0.025 * len(drawn))], drawn[min(len(drawn) - 1, int(0.975 * len(drawn)))]),
    )
