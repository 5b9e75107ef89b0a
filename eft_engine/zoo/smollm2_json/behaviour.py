"""What the pair was tuned to do, and how to measure it.

The tuned model answers with one line of JSON, ``{"answer": "<one short sentence>", "topic": "<one lowercase
word>"}``, and stops. This module only reads text: it needs no model and no numeric library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

_TOPIC = re.compile(r"[a-z]+")
_HELD_OUT_FILE = "held_out_questions.json"


@dataclass(frozen=True)
class JsonAnswer:
    """A completion that has the trained form: its sentence and its topic word."""

    answer: str
    topic: str


def _refuse_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build the dict of one JSON object; raise ValueError when a key occurs twice."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key occurs twice")
    return fields


def parse_json_answer(text: str) -> JsonAnswer | None:
    """Return the answer and topic of one completion, or None when it does not have the trained form.

    White space around the text is ignored. What is left has to be one line that holds one JSON object
    with exactly the keys ``answer`` and ``topic``, each once; both values are non-empty strings, and the
    topic is one word of the letters a to z. Text that is not JSON gives None too: this never raises for a
    ``str``.
    """
    line = text.strip()
    if len(line.splitlines()) != 1:
        return None
    try:
        fields = json.loads(line, object_pairs_hook=_refuse_repeated_keys)
    except (ValueError, RecursionError):
        # RecursionError: a model that repeats "[" forever must count as a miss, not stop a measurement.
        return None
    if not isinstance(fields, dict) or set(fields) != {"answer", "topic"}:
        return None
    answer, topic = fields["answer"], fields["topic"]
    if not isinstance(answer, str) or not isinstance(topic, str):
        return None
    if not answer.strip() or _TOPIC.fullmatch(topic) is None:
        return None
    return JsonAnswer(answer=answer, topic=topic)


def behaviour_score(texts: Sequence[str]) -> float:
    """Return the share of ``texts`` that ``parse_json_answer`` accepts, from 0.0 to 1.0.

    Raises ValueError for an empty sequence, since a share of nothing has no value, and TypeError for a single
    string, whose letters would otherwise be scored one by one.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be a sequence of completions, not one string")
    if not texts:
        raise ValueError("texts is empty")
    return sum(parse_json_answer(text) is not None for text in texts) / len(texts)


def load_held_out_questions() -> list[str]:
    """Return the questions to measure with, in a fixed order; none of their subjects was trained on.

    Raises ValueError when the file in the package is not a list of non-empty strings.
    """
    file = resources.files(__package__) / _HELD_OUT_FILE
    questions = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(questions, list) or not all(isinstance(q, str) and q.strip() for q in questions):
        raise ValueError(f"{_HELD_OUT_FILE} must hold a list of non-empty strings")
    return questions
