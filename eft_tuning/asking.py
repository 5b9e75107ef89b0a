"""The engines that a tuning asks: a teacher that rewrites answers, the pair at the end, and the trio."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eft_engine import Engine
from eft_engine.config import EngineConfig, SamplingParams, TunedPair
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.scorers import PatternMatch, SchemaMatch, Scorer
from eft_tuning.behaviour import BehaviourReport, measure_behaviour
from eft_tuning.chats import Chat
from eft_tuning.rewriting import RewriteOptions, Rewritten, rewrite
from eft_tuning.stages import OnProgress

PAIR = "tuned"
"""Name of the pair in the engines of this file."""

WEIGHTS = (0.0, 1.0)
QUESTIONS = 3
"""Of the trio: the question file of `eft eval` is where it is measured."""

LONGEST_ANSWER = 256


def form_scorer(*, pattern: str | None, schema: Path | None) -> Scorer | None:
    """The user's measure of the form; None: how the training answers look from outside.

    Raises:
        InvalidOptionError: the pattern or the schema is none, or both are given.
    """
    if pattern is not None and schema is not None:
        raise InvalidOptionError("--pattern and --schema both say what the form is; give one of them", option="pattern")
    if pattern is not None:
        return PatternMatch(pattern)
    if schema is None:
        return None
    try:
        return SchemaMatch(json.loads(schema.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InvalidOptionError(f"cannot read the schema {schema}: {error}", option="schema") from None


def rewritten(
    chats: Sequence[Chat],
    *,
    teacher: str,
    cache: Path,
    form: Scorer | None,
    seed: int,
    on_progress: OnProgress,
) -> Rewritten:
    """Training rows with answers of a model alone, the small one or another. Errors: as of `rewriting.rewrite` and loading."""
    with Engine.load(teacher, config=EngineConfig()) as engine:
        return rewrite(
            engine,
            chats,
            teacher=teacher,
            cache=cache,
            form=form,
            options=RewriteOptions(seed=seed),
            on_progress=on_progress,
        )


@dataclass(frozen=True)
class TrioAnswer:
    """What the trio says to one held-out question, by weight."""

    question: str
    answers: dict[float, str]

    def in_words(self) -> list[str]:
        """As lines of text."""
        return [self.question, *(f"  weight {weight:g}: {answer}" for weight, answer in self.answers.items())]


def load_pair(adapter: Path, reference: str, *, base: str | None) -> AbstractContextManager[Engine]:
    """An engine with the pair over `base`; without one, over the reference itself, which is the same network."""
    pair = TunedPair(tuned=str(adapter), reference=reference)
    return Engine.load(base or reference, pairs={PAIR: pair}, config=EngineConfig())


def behaviour(
    engine: Engine, held_out: Sequence[Chat], train: Sequence[Chat], *, form: Scorer | None, on_progress: OnProgress
) -> BehaviourReport:
    """How the tuned small model answers held-out questions, beside the reference."""
    return measure_behaviour(engine, held_out, train=train, pair=PAIR, form=form, on_progress=on_progress)


def ask_trio(engine: Engine, held_out: Sequence[Chat]) -> list[TrioAnswer]:
    """A few held-out questions at weights 0 and 1, greedily."""
    asked: list[Any] = [chat.prompt for chat in held_out if not chat.tools][:QUESTIONS]
    questions = [chat.question for chat in held_out if not chat.tools][:QUESTIONS]
    sampling = SamplingParams(temperature=0.0, max_tokens=LONGEST_ANSWER)
    found = {weight: engine.generate(asked, sampling=sampling, reward_weights=weight) for weight in WEIGHTS}
    return [
        TrioAnswer(question, {weight: outputs[place].text for weight, outputs in found.items()})
        for place, question in enumerate(questions)
    ]
