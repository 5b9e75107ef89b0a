"""Ask a trio the questions at several weights, and count."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eft_engine.config import CompositionOptions, SamplingParams
from eft_engine.evaluation.intervals import Share, share_of
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.scorers import Scorer
from eft_engine.outputs import RequestOutput
from eft_engine.weights import SCHEDULES, RewardWeights, checked_weight, is_schedule, numbers_of

if TYPE_CHECKING:
    from eft_engine.engine.engine import Engine

Weights = RewardWeights
"""One setting: a weight for every pair, a mapping by pair name, or None for the pairs' own weights."""


@dataclass(frozen=True)
class WeightResult:
    """Everything measured at one setting of the weights."""

    label: str
    weights: Weights
    answers: list[RequestOutput]
    marks: dict[str, list[bool]]
    """By scorer, one mark a question."""
    groups: list[str]
    seconds: float
    changed: Share | None = None
    """Tokens that the base would not have written by itself; None: nobody has looked."""

    def share(self, scorer: str, *, group: str | None = None) -> Share:
        """How many answers count, over all questions or those of a group."""
        marks = self.marks[scorer]
        return share_of([mark for mark, of in zip(marks, self.groups, strict=True) if group in (None, of)])

    @property
    def steered(self) -> float:
        """Share of all tokens that were drawn with some weight other than 0."""
        tokens = sum(len(answer.token_ids) for answer in self.answers)
        steered = sum(answer.intervention_rate * len(answer.token_ids) for answer in self.answers)
        return steered / tokens if tokens else 0.0

    def joined(self, other: WeightResult) -> WeightResult:
        """The result with the answers to further questions at the same setting."""
        marks = {name: [*own, *other.marks[name]] for name, own in self.marks.items()}
        return replace(
            self,
            answers=[*self.answers, *other.answers],
            marks=marks,
            groups=[*self.groups, *other.groups],
            seconds=self.seconds + other.seconds,
        )

    @property
    def cut(self) -> Share:
        """How many answers max_tokens ended."""
        return share_of([answer.finish_reason == "length" for answer in self.answers])

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / drafted tokens; None when nothing was drafted."""
        drafted = sum(answer.metrics.num_drafted for answer in self.answers)
        return sum(answer.metrics.num_accepted for answer in self.answers) / drafted if drafted else None

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens by the second, all questions together."""
        return sum(answer.usage.completion_tokens for answer in self.answers) / self.seconds if self.seconds else 0.0

    @property
    def mean_tokens(self) -> float:
        """Length of an answer."""
        return sum(answer.usage.completion_tokens for answer in self.answers) / len(self.answers)


def evaluate(
    engine: Engine,
    questions: Sequence[Question],
    *,
    scorers: Sequence[Scorer],
    weights: Sequence[Weights],
    sampling: SamplingParams,
    composition: CompositionOptions | None = None,
    on_result: Callable[[WeightResult], None] | None = None,
) -> list[WeightResult]:
    """Answer all questions at every setting of the weights, and score the answers.

    Args:
        engine: the trio.
        questions: what is asked.
        scorers: what counts; an answer is given once and scored by each.
        weights: a weight (a number or a schedule) for every pair or a mapping by pair name, one after the other.
        sampling: how answers are drawn; temperature 0 is repeatable.
        composition: variants of the formula, and prompt pairs.
        on_result: called after each setting, for progress displays.

    Raises:
        InvalidOptionError: a question lacks what a scorer needs.
        RequestError, GenerationError: as from `Engine.generate`.
    """
    results = []
    prompts: Any = [question.as_prompt() for question in questions]  # raw and chat prompts may be mixed
    for setting in weights:
        started = time.perf_counter()
        answers: list[RequestOutput] = engine.generate(
            prompts,
            sampling=sampling,
            reward_weights=setting,
            composition=composition,
        )
        seconds = time.perf_counter() - started
        marks = {
            scorer.name: [
                _counts(scorer, question, answer) for question, answer in zip(questions, answers, strict=True)
            ]
            for scorer in scorers
        }
        groups = [question.group for question in questions]
        result = WeightResult(label_of(setting), setting, answers, marks, groups, seconds)
        results.append(result)
        if on_result is not None:
            on_result(result)
    return results


def _counts(scorer: Scorer, question: Question, answer: RequestOutput) -> bool:
    if answer.finish_reason == "length" and getattr(scorer, "needs_whole", False):
        return False
    return scorer.score(question, answer.text)


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
