"""The question files that the zoo ships: held-out facts, passages about fictional places, and requests for tools."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from recipes.atlas.corpus import reading_dialogue, reserved_question
from recipes.atlas.facts import Fact
from recipes.atlas.fiction import make_reading
from recipes.atlas.phrasing import assistant_answer
from recipes.atlas.tools import make_tool_request

NUM_READINGS = NUM_TOOL_REQUESTS = 200
SEED = 61_000
"""Far from the seeds of the corpus and of tuning: other names, other passages."""


def fact_questions(facts: list[Fact]) -> list[dict[str, Any]]:
    """Every held-out fact, asked in the wording that the corpus and fine-tuning never used for it."""
    held_out = [fact for fact in facts if fact.is_held_out]
    random.Random(SEED).shuffle(held_out)
    return [
        {"question": reserved_question(fact), "answers": [fact.answer], "group": fact.relation} for fact in held_out
    ]


def reading_questions() -> list[dict[str, Any]]:
    """Conversations with a passage about made-up places; only reading it gives the answer."""
    rng = random.Random(SEED + 1)
    questions = []
    for _ in range(NUM_READINGS):
        reading = make_reading(rng, max_places=rng.choice((1, 2, 3)))
        turns = reading_dialogue(reading.passage, reading.items, rng, lambda item, _: assistant_answer(item)).turns[:-1]
        messages = [{"role": role, "content": text} for role, text in turns]
        questions.append({"messages": messages, "answers": [reading.items[0].answer], "group": "context"})
    return questions


def tool_questions() -> list[dict[str, Any]]:
    """Requests with the tools on offer and the call that serves them."""
    rng = random.Random(SEED + 2)
    questions = []
    for _ in range(NUM_TOOL_REQUESTS):
        request = make_tool_request(rng)
        tools = [tool.as_openai() for tool in request.tools]
        questions.append({"question": request.request, "tools": tools, "call": request.call})
    return questions


def write_questions(folder: Path, facts: list[Fact]) -> None:
    """Write `facts.jsonl`, `reading.jsonl` and `tools.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"facts": fact_questions(facts), "reading": reading_questions(), "tools": tool_questions()}
    for name, questions in files.items():
        lines = [json.dumps(question, ensure_ascii=False) + "\n" for question in questions]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
