"""Questions: what is asked, and whatever a scorer compares the answer with."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from eft_engine.config import Messages, Prompt

ROLES = ("system", "developer", "user", "assistant", "tool")
LAST_ROLES = ("user", "tool")
"""Whose turn an answer can follow."""


class Question(BaseModel):
    """One line of a question file.

    Exactly one of `question` (a user's turn), `messages` (a conversation) and `prompt` (raw text, no chat template) is given.

    >>> Question(question="What is the capital of France?", answers=["Paris"]).as_prompt()
    [{'role': 'user', 'content': 'What is the capital of France?'}]
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str | None = None
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    answers: list[str] = Field(default=[], description="accepted answers, for exact match and for the judge")
    pattern: str | None = Field(default=None, description="regular expression, where it differs by question")
    group: str = Field(default="all", description="the report also counts by group")

    @field_validator("question", "prompt")
    @classmethod
    def _says_something(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("is empty; write what is asked")
        return value

    @field_validator("messages")
    @classmethod
    def _conversation(cls, value: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        if value is not None:
            _check_messages(value)
        return value

    @field_validator("answers")
    @classmethod
    def _expects_something(cls, value: list[str]) -> list[str]:
        for place, answer in enumerate(value, start=1):
            if not answer.strip():
                raise ValueError(f"number {place} is empty; leave it out")
        return value

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value, re.DOTALL)
            except re.error as error:
                raise ValueError(f"is not a regular expression ({error}): {value!r}") from None
        return value

    @model_validator(mode="after")
    def _one_form(self) -> Question:
        given = [name for name in ("question", "messages", "prompt") if getattr(self, name) is not None]
        if len(given) != 1:
            told = f"has {' and '.join(given)}" if given else "asks nothing"
            raise ValueError(f"{told}; give one of question, messages and prompt")
        return self

    def as_prompt(self) -> Prompt:
        """What the engine is asked."""
        if self.prompt is not None:
            return self.prompt
        if self.messages is not None:
            messages: Messages = list(self.messages)
            return messages
        return [{"role": "user", "content": self.question}]

    def text(self) -> str:
        """The question as people (and judges) read it: the last turn of a conversation."""
        if self.messages is not None:
            return _text_of(self.messages[-1].get("content"))
        return self.question or self.prompt or ""


def _check_messages(messages: Sequence[dict[str, Any]]) -> None:
    """Raises ValueError for what is no conversation that ends in a question."""
    if not messages:
        raise ValueError("holds no turns; give at least one of the user")
    for place, message in enumerate(messages, start=1):
        role = message.get("role")
        if role not in ROLES:
            raise ValueError(f"turn {place} has the role {role!r}; roles are {', '.join(ROLES)}")
        content = message.get("content")
        is_text = isinstance(content, str) or (
            isinstance(content, list)
            and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content)
        )
        if not is_text and not (content is None and message.get("tool_calls")):
            raise ValueError(f"turn {place} ({role}) needs content that is text, got {content!r}")
        if is_text and not _text_of(content).strip() and role != "tool" and not message.get("tool_calls"):
            raise ValueError(f"turn {place} ({role}) is empty; fill it or leave it out")
    if messages[-1]["role"] not in LAST_ROLES:
        raise ValueError(f"ends with a turn of {messages[-1]['role']}; the last one must be what is to be answered")


def _text_of(content: object) -> str:
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return "" if content is None else str(content)


def keys_of(questions: Sequence[Question]) -> list[str]:
    """What tells questions apart by what a model reads: the same prompt a second time has a number behind it.

    >>> one, two, _ = keys_of([Question(prompt="a"), Question(prompt="a", answers=["b"]), Question(prompt="c")])
    >>> two == one + "#2"
    True
    """
    seen: Counter[str] = Counter()
    keys = []
    for question in questions:
        prompt = json.dumps(question.as_prompt(), sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        seen[key] += 1
        keys.append(key if seen[key] == 1 else f"{key}#{seen[key]}")
    return keys


def load_questions(path: Path) -> list[Question]:
    """The questions of a JSON Lines file; empty lines are skipped. What else is known of the file: `question_file.read_questions`.

    Raises:
        InvalidOptionError: there is no such file, lines are no questions (all of them are named), or there is none.
    """
    from eft_engine.evaluation.question_file import read_questions

    return list(read_questions(path).questions)
