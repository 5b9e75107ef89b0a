"""Question files: one JSON object a line, with the question and whatever its scorer compares the answer with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from eft_engine.config import Messages, Prompt
from eft_engine.errors import InvalidOptionError


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

    @model_validator(mode="after")
    def _one_form(self) -> Question:
        if sum(form is not None for form in (self.question, self.messages, self.prompt)) != 1:
            raise ValueError("give one of question, messages and prompt")
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
            return str(self.messages[-1].get("content", ""))
        return self.question or self.prompt or ""


def load_questions(path: Path) -> list[Question]:
    """The questions of a JSON Lines file; empty lines are skipped.

    Raises:
        InvalidOptionError: there is no such file, a line is not a question, or there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOptionError(
            f"cannot read the question file {path}: {error}", option="questions", value=str(path)
        ) from None
    questions: list[Question] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            questions.append(Question.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            what = f"{where}: {first['msg']}" if where else first["msg"]
            raise InvalidOptionError(
                f"{path}, line {number} is not a question ({what}); "
                'a line looks like {"question": "What is the capital of France?", "answers": ["Paris"]}',
                option="questions",
                value=line,
            ) from None
    if not questions:
        raise InvalidOptionError(f"{path} holds no questions", option="questions", value=str(path))
    return questions
