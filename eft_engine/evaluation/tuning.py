"""Which weight? Successive halving over weights and schedules (Jamieson & Talwalkar 2016, arXiv 1502.07943): all candidates answer
a few questions, the better half goes on to twice as many, and those that are left answer them all.

Weight 0, the base alone, answers all of them too: what a candidate loses against it counts double while candidates are dropped, and
in the end none is taken that loses more than `tolerance` in the share of any scorer.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eft_engine.config import CompositionOptions, SamplingParams, TokenIds
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.intervals import Share, share_of
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.run import WeightResult, Weights, evaluate, label_of, numbers_in
from eft_engine.evaluation.scorers import Scorer
from eft_engine.outputs import RequestOutput
from eft_engine.weights import FirstTokens, Gate, Proportional

if TYPE_CHECKING:
    from eft_engine.engine.engine import Engine

CANDIDATES: tuple[Weights, ...] = (
    0.1,
    0.25,
    0.5,
    1.0,
    1.5,
    2.0,
    Gate(by="base_entropy", above=0.5),
    Gate(by="kl", above=0.5),
    Gate(by="jensen_shannon", above=0.2),
    Proportional(to="jensen_shannon"),
    FirstTokens(num_tokens=8),
)
"""What is tried where nothing is named."""

FEWEST_QUESTIONS = 8
MOST_FINALISTS = 3
MUCH_CHANGED = 0.2
"""Share of changed tokens above which there is a warning: behaviour is in few tokens, and what changes many changes content too."""
MOST_COMPARED = 64
"""Answers of a finalist that are compared with what the base would write."""


@dataclass(frozen=True)
class Round:
    """So many candidates have answered so many questions by the end of it."""

    num_candidates: int
    num_questions: int


def plan_rounds(num_candidates: int, num_questions: int) -> list[Round]:
    """Half of the candidates go on, to twice as many questions; the last round has all questions.

    >>> [(each.num_candidates, each.num_questions) for each in plan_rounds(11, 100)]
    [(11, 25), (6, 50), (3, 100)]
    >>> plan_rounds(2, 100)
    [Round(num_candidates=2, num_questions=100)]
    """
    halvings = max(0, math.ceil(math.log2(max(1, num_candidates) / MOST_FINALISTS)))
    rounds: list[Round] = []
    for place in range(halvings + 1):
        asked = max(math.ceil(num_questions / 2 ** (halvings - place)), FEWEST_QUESTIONS)
        rounds.append(Round(math.ceil(num_candidates / 2**place), min(asked, num_questions)))
    return rounds


@dataclass(frozen=True)
class Tuning:
    """What was found.

    Attributes:
        best: the setting to take; weight 0 where no candidate is better and loses nothing.
        results: weight 0 first, then the candidates from the best on; those that were dropped have answered fewer questions.
        finalists: labels of those that answered all questions.
        warnings: what speaks against the best one, in sentences.
        questions: in the order in which they were asked.
    """

    best: WeightResult
    results: tuple[WeightResult, ...]
    finalists: tuple[str, ...]
    warnings: tuple[str, ...]
    questions: tuple[Question, ...]


def tune(
    engine: Engine,
    questions: Sequence[Question],
    *,
    scorers: Sequence[Scorer],
    sampling: SamplingParams,
    candidates: Sequence[Weights] = CANDIDATES,
    off: Weights = 0.0,
    composition: CompositionOptions | None = None,
    tolerance: float = 0.02,
    seed: int = 0,
    on_answers: Callable[[int, int, str], None] | None = None,
) -> Tuning:
    """Find the weight or schedule at which answers score best.

    Args:
        engine: the trio.
        questions: what is asked, in an order that `seed` decides.
        scorers: what counts; their shares count alike.
        sampling: how answers are drawn.
        candidates: settings to try.
        off: the setting of the base alone.
        composition: prompt pairs and variants of the formula.
        tolerance: share of answers that the best setting may lose in any scorer against the base alone.
        seed: of the order of the questions.
        on_answers: told answers that are there, answers that there will be, and the setting that was asked, for progress displays.

    Raises:
        InvalidOptionError: there is no candidate, or two are the same.
        RequestError, GenerationError: as from `Engine.generate`.
    """
    labels = [label_of(candidate) for candidate in candidates]
    if not labels:
        raise InvalidOptionError("there is nothing to try; name a candidate", option="candidates")
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise InvalidOptionError(f"the candidate {twice[0]} is given twice", option="candidates", value=twice[0])
    order = list(questions)
    random.Random(seed).shuffle(order)
    trial = _Trial(engine, order, scorers, sampling, composition, on_answers)
    rounds = plan_rounds(len(candidates), len(order))
    trial.plan(rounds)

    alone = trial.ask(off, len(order), None)
    results: dict[str, WeightResult] = {}
    going = dict(zip(labels, candidates, strict=True))
    for each in rounds:
        if results:  # the better ones go on
            ranked = sorted(going, key=lambda label: _rank(results[label], alone))
            going = {label: going[label] for label in ranked[: each.num_candidates]}
        for label, candidate in going.items():
            results[label] = trial.ask(candidate, each.num_questions, results.get(label))
    alone = dataclasses.replace(alone, changed=share_of([False] * sum(len(own.token_ids) for own in alone.answers)))
    for label in going:
        results[label] = dataclasses.replace(
            results[label], changed=changed_tokens(engine, order, results[label].answers)
        )
    ranked = sorted(results, key=lambda label: (label not in going, _rank(results[label], alone)))
    finals = [alone, *(results[label] for label in ranked if label in going)]
    kept = [own for own in finals if not _losses(own, alone, tolerance)]
    best = min(kept, key=lambda own: _rank(own, alone))
    shown = (alone, *(results[label] for label in ranked))
    warnings = _warnings(best, finals, alone, tolerance)
    return Tuning(best, shown, tuple(own.label for own in finals), tuple(warnings), tuple(order))


class _Trial:
    """Asks, and adds new answers to those that are there."""

    def __init__(
        self,
        engine: Engine,
        questions: Sequence[Question],
        scorers: Sequence[Scorer],
        sampling: SamplingParams,
        composition: CompositionOptions | None,
        on_answers: Callable[[int, int, str], None] | None,
    ) -> None:
        self._engine, self._questions, self._scorers = engine, questions, scorers
        self._sampling, self._composition, self._on_answers = sampling, composition, on_answers
        self._num_done = self._num_planned = 0

    def plan(self, rounds: Sequence[Round]) -> None:
        """Count the answers that there will be."""
        before = 0
        self._num_planned = len(self._questions)
        for each in rounds:
            self._num_planned += each.num_candidates * (each.num_questions - before)
            before = each.num_questions

    def ask(self, setting: Weights, num_questions: int, known: WeightResult | None) -> WeightResult:
        """The result for the first questions; those that were answered before are not asked again."""
        start = len(known.answers) if known else 0
        if known is not None and start == num_questions:
            return known
        (new,) = evaluate(
            self._engine,
            self._questions[start:num_questions],
            scorers=self._scorers,
            weights=[setting],
            sampling=self._sampling,
            composition=self._composition,
        )
        self._num_done += num_questions - start
        if self._on_answers is not None:
            self._on_answers(self._num_done, self._num_planned, new.label)
        return new if known is None else known.joined(new)


def changed_tokens(engine: Engine, questions: Sequence[Question], answers: Sequence[RequestOutput]) -> Share:
    """How many tokens of the first answers the base would not have written by itself, greedily, behind the same text."""
    changed: list[bool] = []
    for question, answer in list(zip(questions, answers, strict=False))[:MOST_COMPARED]:
        written = TokenIds(ids=answer.token_ids)
        scores = engine.score(question.as_prompt(), written, reward_weights=0.0, every_member=False)
        changed += [not token.is_base_greedy for token in scores.tokens]
    return share_of(changed)


def _mean(result: WeightResult) -> float:
    return sum(result.share(name).value for name in result.marks) / len(result.marks)


def _rank(result: WeightResult, alone: WeightResult) -> tuple[float, float, float]:
    """Smaller is better: by shares, of which a loss against the base counts double; among equals fewer steered tokens, then the
    smaller weight. Shares of the base are those of the same questions.
    """
    count = len(result.answers)
    base = {name: share_of(marks[:count]).value for name, marks in alone.marks.items()}
    lost = sum(max(0.0, base[name] - result.share(name).value) for name in result.marks) / len(result.marks)
    return (
        round(lost - _mean(result), 9),
        round(result.steered, 9),
        max(map(abs, numbers_in(result.weights)), default=0.0),
    )


def _losses(result: WeightResult, alone: WeightResult, tolerance: float) -> list[str]:
    return [name for name in result.marks if result.share(name).value < alone.share(name).value - tolerance - 1e-9]


def _warnings(best: WeightResult, finals: Sequence[WeightResult], alone: WeightResult, tolerance: float) -> list[str]:
    found: list[str] = []
    for own in finals:
        for name in _losses(own, alone, tolerance):
            found.append(f"{own.label}: {name} falls from {alone.share(name)} of the base to {own.share(name)}")
    if best is alone:
        found.append("nothing that was tried is better than weight 0 without losing what the base has")
    elif best.changed is not None and best.changed.value > MUCH_CHANGED:
        found.append(
            f"{best.label}: the base would have written {best.changed.value:.0%} of the tokens otherwise; behaviour is in few "
            "tokens, so look whether content changes too"
        )
    others = [own for own in finals if own is not best and own is not alone and not _losses(own, alone, tolerance)]
    if best is not alone and others and all(_overlap(best, own) for own in others):
        found.append(f"{best.label} is not apart from {', '.join(own.label for own in others)}: ask more questions")
    return found


def _overlap(one: WeightResult, other: WeightResult) -> bool:
    for name in one.marks:
        (low, high), (other_low, other_high) = one.share(name).interval, other.share(name).interval
        if low > other_high or other_low > high:
            return False
    return True
