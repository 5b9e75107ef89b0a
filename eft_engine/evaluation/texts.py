"""Files of texts to score: prompts as in question files, some of them with a completion."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.questions import Question


@dataclass(frozen=True)
class Text:
    """A line of the file: a prompt, and its completion; None: the composition writes it."""

    question: Question
    completion: str | None


def read_texts(path: Path) -> list[Text]:
    """The lines of a file: those of `eft eval`'s question files, and with a `completion` (or an `answer`), or messages that end
    with the assistant's, text of which is scored.

    Raises:
        InvalidOptionError: there is no such file, it is empty, or a line is none of these.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOptionError(f"cannot read {path}: {error}", option="prompt", value=str(path)) from None
    found: list[Text] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                found.append(_text(json.loads(line)))
            except (ValidationError, ValueError, TypeError, AttributeError) as error:
                reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
                raise InvalidOptionError(
                    f'{path}, line {number}: {reason}; a line looks like {{"question": ...}}, {{"messages": [...]}} or '
                    '{"prompt": ...}, each perhaps with {"completion": ...}',
                    option="prompt",
                    value=line,
                ) from None
    if not found:
        raise InvalidOptionError(f"{path} holds no prompts", option="prompt", value=str(path))
    return found


def _text(fields: dict[str, Any]) -> Text:
    fields = dict(fields)
    completion = fields.pop("completion", fields.pop("answer", None))
    turns = fields.get("messages")
    if completion is None and turns and turns[-1].get("role") == "assistant":
        fields["messages"], completion = turns[:-1], turns[-1]["content"]
    if isinstance(completion, list):  # TRL's conversational form
        completion = completion[-1]["content"]
    if isinstance(fields.get("prompt"), list):
        fields["messages"] = fields.pop("prompt")
    if completion is not None and not isinstance(completion, str):
        raise ValueError(f"the completion must be a string, got {completion!r}")
    return Text(Question(**fields), completion)
