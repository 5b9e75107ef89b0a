"""The question files of Atlas, in the form that `eft eval` reads (tools.jsonl besides has tools and the expected call)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
QUESTION_FILES = {name: FOLDER / "questions" / f"{name}.jsonl" for name in ("facts", "reading", "tools")}


@dataclass(frozen=True)
class FactQuestion:
    """A question about a held-out fact; `group` is its relation."""

    question: str
    answer: str
    group: str


def load_fact_questions() -> list[FactQuestion]:
    """All held-out facts, in mixed order."""
    lines = QUESTION_FILES["facts"].read_text(encoding="utf-8").splitlines()
    return [
        FactQuestion(line["question"], line["answers"][0], line["group"])
        for line in (json.loads(text) for text in lines)
    ]
