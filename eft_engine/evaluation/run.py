"""Ask a trio the questions at several weights, and count."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eft_engine.config import CompositionOptions, SamplingParams
from eft_engine.evaluation.answer_log import AnswerLog, FolderLog, Recorded
from eft_engine.evaluation.asking import ask
from eft_engine.evaluation.questions import Question, keys_of
from eft_engine.evaluation.results import Timing
from eft_engine.evaluation.results import WeightResult as WeightResult
from eft_engine.evaluation.scorers import Scorer, marks_of, scored_by
from eft_engine.evaluation.settings import Setting
from eft_engine.evaluation.settings import Weights as Weights
from eft_engine.evaluation.settings import label_of as label_of
from eft_engine.evaluation.settings import numbers_in as numbers_in
from eft_engine.outputs import RequestOutput

if TYPE_CHECKING:
    from eft_engine.engine.engine import Engine

OnProgress = Callable[[Setting, int, int], None]
"""Told a setting, how many of its answers are there, and how many there will be: when it begins, and after each answer."""


class Evaluation:
    """Questions, how they are asked, and the answers so far."""

    def __init__(
        self,
        engine: Engine,
        questions: Sequence[Question],
        *,
        scorers: Sequence[Scorer],
        sampling: SamplingParams,
        composition: CompositionOptions | None = None,
        log: AnswerLog | None = None,
        on_progress: OnProgress | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> None:
        """Arguments as for `evaluate`."""
        self.engine, self.questions, self.scorers = engine, list(questions), list(scorers)
        self._sampling, self._composition = sampling, composition
        self._log = AnswerLog() if log is None else log
        self._on_progress, self._on_wait = on_progress, on_wait
        self._keys = keys_of(self.questions)
        self._scored_by = [scored_by(self.scorers, question) for question in self.questions]

    def wait(self) -> None:
        """Tell whoever wants to know that it goes on; raises what it raises."""
        if self._on_wait is not None:
            self._on_wait()

    def result(self, setting: Setting, count: int | None = None) -> WeightResult:
        """The result at a setting for the first so many questions (None: all); answers that are there are not asked again.

        Raises:
            InvalidOptionError: a question lacks what a scorer needs.
            RequestError, GenerationError: as from `Engine.generate`; the answers that are there stay.
        """
        places = range(len(self.questions))[:count]
        missing = [place for place in places if self._log.get(setting, self._keys[place]) is None]
        num_done = len(places) - len(missing)
        self._tell(setting, num_done, len(places))
        started = last = time.perf_counter()
        num_tokens = 0
        asked = ask(
            self.engine,
            [self.questions[place].as_prompt() for place in missing],
            sampling=self._sampling,
            reward_weights=setting.weights,
            composition=self._composition if setting.member is None else CompositionOptions(member=setting.member),
            on_wait=self._on_wait,
        )
        with contextlib.closing(asked):
            for arrived in asked:
                last = arrived.at
                num_tokens += arrived.output.usage.completion_tokens
                num_done += 1
                self._keep(setting, missing[arrived.place], arrived.output)
                self._tell(setting, num_done, len(places))
        if missing:
            self._log.add_timing(setting, Timing(len(missing), num_tokens, last - started))
        return self.so_far(setting, count)

    def so_far(self, setting: Setting, count: int | None = None) -> WeightResult:
        """The result of those answers that are there; nothing is asked. Raises what scorers raise."""
        places = [
            place
            for place in range(len(self.questions))[:count]
            if self._log.get(setting, self._keys[place]) is not None
        ]
        records = [self._scored(setting, place) for place in places]
        return WeightResult(
            label=setting.name,
            weights=setting.weights,
            answers=[own.output for own in records],
            marks={scorer.name: [own.marks[scorer.name] for own in records] for scorer in self.scorers},
            groups=[self.questions[place].group for place in places],
            timing=self._log.timing(setting),
            member=setting.member,
            places=places,
        )

    def put_in_order(self, results: Sequence[WeightResult]) -> None:
        """Write the file of answers anew, by settings and questions, if there is one."""
        if isinstance(self._log, FolderLog):
            self._log.put_in_order(
                (
                    own.setting,
                    self._keys[place],
                    self._told(own.setting, place, answer, {name: marks[index] for name, marks in own.marks.items()}),
                )
                for own in results
                for index, (place, answer) in enumerate(zip(own.places, own.answers, strict=True))
            )

    def _scored(self, setting: Setting, place: int) -> Recorded:
        """With the marks that the scorers would give now."""
        found = self._log.get(setting, self._keys[place])
        assert found is not None, "only answers that are there are scored"
        return found if found.scored_by == self._scored_by[place] else self._keep(setting, place, found.output)

    def _keep(self, setting: Setting, place: int, output: RequestOutput) -> Recorded:
        """Score an answer and put it into the log, there even if a scorer fails."""
        recorded = Recorded(output, {}, None)
        try:
            marks = marks_of(self.scorers, self.questions[place], output)
            recorded = Recorded(output, marks, self._scored_by[place])
        finally:
            told = self._told(setting, place, output, recorded.marks)
            self._log.add(setting, self._keys[place], recorded, told)
        return recorded

    def _told(self, setting: Setting, place: int, output: RequestOutput, marks: Mapping[str, bool]) -> dict[str, Any]:
        question = self.questions[place]
        return {
            "weights": setting.name,
            "question": question.text(),
            "answer": output.text,
            "finish_reason": output.finish_reason,
            "expected": question.answers,
            "group": question.group,
            **marks,
        }

    def _tell(self, setting: Setting, num_done: int, total: int) -> None:
        if self._on_progress is not None:
            self._on_progress(setting, num_done, total)


def evaluate(
    engine: Engine,
    questions: Sequence[Question],
    *,
    scorers: Sequence[Scorer],
    weights: Sequence[Weights],
    sampling: SamplingParams,
    composition: CompositionOptions | None = None,
    members: Sequence[str | Setting] = (),
    log: AnswerLog | None = None,
    on_result: Callable[[WeightResult], None] | None = None,
    on_progress: OnProgress | None = None,
    on_wait: Callable[[], None] | None = None,
) -> list[WeightResult]:
    """Answer all questions at every setting of the weights, and score the answers.

    Args:
        engine: the trio.
        questions: what is asked.
        scorers: what counts; an answer is given once and scored by each.
        weights: a weight (a number or a schedule) for every pair or a mapping by pair name, one after the other.
        sampling: how answers are drawn; temperature 0 is repeatable.
        composition: variants of the formula, and prompt pairs.
        members: members that answer alone, as `chat.tuned`; they are asked first, since they are small, and their results are last.
        log: keeps answers, so that an evaluation that was interrupted goes on (`answer_log.open_log`).
        on_result: called after each setting.
        on_progress: for progress displays.
        on_wait: called a few times a second; what it raises ends the evaluation, and what was answered stays in the log.

    Raises:
        InvalidOptionError: a question lacks what a scorer needs.
        RequestError, GenerationError: as from `Engine.generate`.
    """
    evaluation = Evaluation(
        engine,
        questions,
        scorers=scorers,
        sampling=sampling,
        composition=composition,
        log=log,
        on_progress=on_progress,
        on_wait=on_wait,
    )
    alone = [Setting(member=own) if isinstance(own, str) else own for own in members]
    results = evaluate_settings(evaluation, [Setting(own) for own in weights], alone, on_result=on_result)
    evaluation.put_in_order(results)
    return results


def evaluate_settings(
    evaluation: Evaluation,
    settings: Sequence[Setting],
    members: Sequence[Setting] = (),
    *,
    on_result: Callable[[WeightResult], None] | None = None,
) -> list[WeightResult]:
    """Results of settings, then those of members, which are asked first."""
    results: dict[str, WeightResult] = {}
    for setting in (*members, *settings):
        results[setting.key()] = found = evaluation.result(setting)
        if on_result is not None:
            on_result(found)
    return [results[setting.key()] for setting in (*settings, *members)]
