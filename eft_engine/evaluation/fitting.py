"""Do the prompts fit? Looked at before anything is asked: one that does not would end an evening at its last question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eft_engine.errors import RequestError
from eft_engine.evaluation.questions import Question

if TYPE_CHECKING:
    from eft_engine.engine.engine import Engine


@dataclass(frozen=True)
class Fitting:
    """By place of the question: why it cannot be asked; and those whose answers the context may end before `max_tokens` does."""

    refused: tuple[tuple[int, str], ...]
    short_of_room: tuple[int, ...]


def fitting(engine: Engine, questions: Sequence[Question], *, max_tokens: int) -> Fitting:
    """Render every prompt once."""
    refused, short = [], []
    for place, question in enumerate(questions):
        try:
            num_tokens = engine.count_prompt_tokens(question.as_prompt(), must_fit=True)
        except RequestError as error:
            refused.append((place, str(error)))
            continue
        if num_tokens >= engine.context_len:
            refused.append((place, f"has {num_tokens} tokens, and the context {engine.context_len}; ask for less"))
        elif num_tokens + max_tokens > engine.context_len:
            short.append(place)
    return Fitting(tuple(refused), tuple(short))
