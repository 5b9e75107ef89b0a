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
from eft_engine.evaluation.answer_log import AnswerLog
from eft_engine.evaluation.cut import cut_warnings, runs_on
from eft_engine.evaluation.intervals import Share, share_of
from eft_engine.evaluation.questions import Question
from eft_engine.evaluation.results import WeightResult
from eft_engine.evaluation.run import Evaluation, OnProgress
from eft_engine.evaluation.scorers import Scorer
from eft_engine.evaluation.settings import Setting, Weights, label_of, numbers_in
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


def num_answers(num_candidates: int, num_questions: int) -> int:
    """Answers of the base and of all candidates that tuning asks for; those of members alone come on top.

    >>> num_answers(11, 100)
    675
    """
    before, found = 0, num_questions
    for each in plan_rounds(num_candidates, num_questions):
        found += each.num_candidates * (each.num_questions - before)
        before = each.num_questions
    return found


@dataclass(frozen=True)
class Tuning:
    """What was found.

    Attributes:
        best: the setting to take; weight 0 where no candidate is better and loses nothing.
        results: weight 0 first, then the candidates from the best on; those that were dropped have answered fewer questions.
        finalists: labels of those that answered all questions.
        warnings: what speaks against the best one, in sentences.
        questions: in the order in which they were asked.
        members: results of members that answered alone.
    """

    best: WeightResult
    results: tuple[WeightResult, ...]
    finalists: tuple[str, ...]
    warnings: tuple[str, ...]
    questions: tuple[Question, ...]
    members: tuple[WeightResult, ...] = ()


def tune(
    engine: Engine,
    questions: Sequence[Question],
    *,
    scorers: Sequence[Scorer],
    sampling: SamplingParams,
    candidates: Sequence[Weights] = CANDIDATES,
    off: Weights = 0.0,
    composition: CompositionOptions | None = None,
    members: Sequence[str | Setting] = (),
    tolerance: float = 0.02,
    seed: int = 0,
    log: AnswerLog | None = None,
    on_progress: OnProgress | None = None,
    on_wait: Callable[[], None] | None = None,
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
        members: members that answer all questions alone, to compare with.
        tolerance: share of answers that the best setting may lose in any scorer against the base alone.
        seed: of the order of the questions.
        log, on_progress, on_wait: as for `evaluate`.

    Raises:
        InvalidOptionError: there is no candidate, or two are the same.
        RequestError, GenerationError: as from `Engine.generate`.
    """
    evaluation = Evaluation(
        engine,
        mixed(questions, seed),
        scorers=scorers,
        sampling=sampling,
        composition=composition,
        log=log,
        on_progress=on_progress,
        on_wait=on_wait,
    )
    alone = [Setting(member=own) if isinstance(own, str) else own for own in members]
    found = tune_settings(evaluation, candidates, off=off, members=alone, tolerance=tolerance)
    evaluation.put_in_order([*found.results, *found.members])
    return found


def mixed(questions: Sequence[Question], seed: int = 0) -> list[Question]:
    """In the order in which they are asked, so that the first ones are like the others."""
    order = list(questions)
    random.Random(seed).shuffle(order)
    return order


def tune_settings(
    evaluation: Evaluation,
    candidates: Sequence[Weights],
    *,
    off: Weights = 0.0,
    members: Sequence[Setting] = (),
    tolerance: float = 0.02,
) -> Tuning:
    """`tune`, for questions that are mixed."""
    labels = [label_of(candidate) for candidate in candidates]
    if not labels:
        raise InvalidOptionError("there is nothing to try; name a candidate", option="candidates")
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise InvalidOptionError(f"the candidate {twice[0]} is given twice", option="candidates", value=twice[0])
    alone_members = [evaluation.result(member) for member in members]
    alone = evaluation.result(Setting(off))
    results: dict[str, WeightResult] = {}
    going = dict(zip(labels, candidates, strict=True))
    for each in plan_rounds(len(candidates), len(evaluation.questions)):
        if results:  # the better ones go on
            ranked = sorted(going, key=lambda label: _rank(results[label], alone))
            going = {label: going[label] for label in ranked[: each.num_candidates]}
        for label, candidate in going.items():
            results[label] = evaluation.result(Setting(candidate), each.num_questions)
    alone = dataclasses.replace(alone, changed=share_of([False] * sum(len(own.token_ids) for own in alone.answers)))
    for label in going:
        results[label] = dataclasses.replace(results[label], changed=changed_tokens(evaluation, results[label]))
    ranked = sorted(results, key=lambda label: (label not in going, _rank(results[label], alone)))
    finals = [alone, *(results[label] for label in ranked if label in going)]
    compared = [*finals, *alone_members]
    kept = [own for own in finals if not _losses(own, alone, tolerance) and runs_on(own, compared) is None]
    best = min(kept, key=lambda own: _rank(own, alone))
    shown = (alone, *(results[label] for label in ranked))
    warnings = [*_warnings(best, finals, alone, tolerance), *cut_warnings([*shown, *alone_members])]
    return Tuning(
        best,
        shown,
        tuple(own.label for own in finals),
        tuple(warnings),
        tuple(evaluation.questions),
        tuple(alone_members),
    )


def changed_tokens(evaluation: Evaluation, result: WeightResult) -> Share:
    """How many tokens of the first answers the base would not have written by itself, greedily, behind the same text."""
    changed: list[bool] = []
    for place, answer in list(zip(result.places, result.answers, strict=True))[:MOST_COMPARED]:
        evaluation.wait()
        prompt, written = evaluation.questions[place].as_prompt(), TokenIds(ids=answer.token_ids)
        scores = evaluation.engine.score(prompt, written, reward_weights=0.0, every_member=False)
        changed += [not token.is_base_greedy for token in scores.tokens]
    return share_of(changed)


def _mean(result: WeightResult) -> float:
    return sum(result.share(name).value for name in result.marks) / len(result.marks)


def _rank(result: WeightResult, alone: WeightResult) -> tuple[float, float, float]:
    """Smaller is better: by shares, of which a loss against the base counts double; among equals fewer steered tokens, then the
    smaller weight. Shares of the base are those of the same questions.
    """
    same = alone.first(len(result.answers))
    base = {name: same.share(name).value for name in alone.marks}
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
