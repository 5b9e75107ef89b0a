"""Prompt files: the question files of `eft eval`, and chat files, whose answers are left out."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eft_engine.config import Prompt, PromptOptions
from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.questions import Question, load_questions
from eft_tuning.chats import load_chats

ANSWERED = {"completion", "conversations", "answer", "chosen"}
"""Fields that only chat files have."""


@dataclass(frozen=True)
class Ask:
    """What is asked, and what its answers are compared with; `tools` are told to the template."""

    question: Question
    tools: list[dict[str, Any]] | None = None

    @property
    def prompt(self) -> Prompt:
        """As the engine takes it."""
        return self.question.as_prompt()

    def options(self, options: PromptOptions) -> PromptOptions:
        """How it is rendered."""
        if self.tools is None:
            return options
        return options.model_copy(update={"template_variables": {**options.template_variables, "tools": self.tools}})

    def key(self) -> str:
        """The same for the same prompt."""
        return json.dumps([self.prompt, self.tools], sort_keys=True, ensure_ascii=False)


def load_asks(path: Path) -> list[Ask]:
    """The prompts of a JSON Lines file: a question file, or a chat file up to the last answer of each line.

    Raises:
        InvalidOptionError: there is no such file, it holds no prompts, or lines of it cannot be read.
    """
    if _has_answers(path):
        return [_asked(row) for row in load_chats(path)]
    return [Ask(question) for question in load_questions(path)]


def _asked(row: Any) -> Ask:
    return Ask(Question(messages=row.prompt), row.tools)


def _has_answers(path: Path) -> bool:
    """Whether the first line is of a chat file. A line that cannot be read is told by who reads the file."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            first = next((line for line in lines if line.strip()), "")
        fields = json.loads(first)
    except (OSError, ValueError):
        return False
    if not isinstance(fields, dict):
        return False
    turns = fields.get("messages")
    ends_answered = bool(
        isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant"
    )
    return bool(ANSWERED & set(fields)) or ends_answered


def split_asks(asks: Sequence[Ask], *, share: float, seed: int) -> tuple[list[Ask], list[Ask]]:
    """Prompts to learn from, and held-out ones, both in the file's order; equal prompts stay on one side.

    Raises:
        InvalidOptionError: one side would be empty.
    """
    keys = list(dict.fromkeys(ask.key() for ask in asks))
    random.Random(seed).shuffle(keys)
    held = set(keys[: max(1, round(share * len(keys)))] if share else ())
    if len(held) == len(keys):
        raise InvalidOptionError(
            f"{len(keys)} different prompts are too few to hold any out; give more, or --held-out FILE",
            option="held_out_share",
            value=share,
        )
    return [ask for ask in asks if ask.key() not in held], [ask for ask in asks if ask.key() in held]


def without(asks: Sequence[Ask], held_out: Sequence[Ask]) -> tuple[list[Ask], int]:
    """The prompts that are not held out, and how many were.

    Raises:
        InvalidOptionError: none is left.
    """
    keys = {ask.key() for ask in held_out}
    left = [ask for ask in asks if ask.key() not in keys]
    if not left:
        raise InvalidOptionError("all prompts are held out, so there is nothing to learn from", option="held_out")
    return left, len(asks) - len(left)
