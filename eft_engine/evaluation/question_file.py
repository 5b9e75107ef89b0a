"""Question files: one JSON object a line. All that is wrong with a file is told at once, with the numbers of its lines."""

from __future__ import annotations

import difflib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.questions import Question, keys_of
from eft_engine.evaluation.scorers import Scorer

MOST_PROBLEMS = 20
"""Problems that are told; how many more there are is said."""
MOST_LINES = 8
"""Numbers of lines that are told of one problem."""
EXAMPLE = '{"question": "What is the capital of France?", "answers": ["Paris"]}'


@dataclass(frozen=True)
class QuestionFile:
    """What was read: questions, the number of each one's line, and what is odd about the file but no mistake, in sentences."""

    path: Path
    questions: tuple[Question, ...]
    lines: tuple[int, ...]
    warnings: tuple[str, ...] = ()

    def first(self, count: int | None) -> QuestionFile:
        """The first so many questions; None: all."""
        return QuestionFile(self.path, self.questions[:count], self.lines[:count], self.warnings)

    def check_for(self, scorers: Sequence[Scorer]) -> None:
        """See that each question has what the scorers compare with.

        Raises:
            InvalidOptionError: some have not.
        """
        found = [
            (line, missing)
            for question, line in zip(self.questions, self.lines, strict=True)
            for scorer in scorers
            if (missing := missing_for(scorer, question)) is not None
        ]
        self.refuse(found)

    def refuse(self, found: Sequence[tuple[int, str]]) -> None:
        """Raises InvalidOptionError if problems were found, each with its line."""
        if found:
            raise InvalidOptionError(_told(self.path, found), option="questions", value=str(self.path))


def missing_for(scorer: Scorer, question: Question) -> str | None:
    """What a question lacks for a scorer, in words; None: nothing. Scorers may have a method `missing` that tells it."""
    missing = getattr(scorer, "missing", None)
    told: str | None = None if missing is None else missing(question)
    return told


def read_questions(path: Path) -> QuestionFile:
    """The questions of a JSON Lines file in UTF-8; empty lines, a byte order mark and ends of lines from Windows do not matter.

    Raises:
        InvalidOptionError: there is no such file, lines are no questions, or there is none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _refused(path, f"cannot read the question file {path}: {error}") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _refused(path, f"{path} is UTF-16, as some editors save text; save it as UTF-8")
    content = content.removeprefix(b"\xef\xbb\xbf")
    _refuse_other_json(path, content)
    questions: list[Question] = []
    lines: list[int] = []
    found: list[tuple[int, str]] = []
    for number, line in enumerate(content.split(b"\n"), start=1):  # no other end of a line: JSON may hold U+2028
        if not line.strip():
            continue
        try:
            question, problems = _read_line(line)
        except UnicodeDecodeError as error:
            question, problems = None, [f"is not UTF-8 (byte {line[error.start : error.start + 1].hex()})"]
        if question is not None:
            questions.append(question)
            lines.append(number)
        found += [(number, problem) for problem in problems]
    read = QuestionFile(path, tuple(questions), tuple(lines), tuple(_warnings(questions, lines)))
    read.refuse(found)
    if not questions:
        raise _refused(path, f"{path} holds no questions; a line looks like {EXAMPLE}")
    return read


def _refused(path: Path, message: str) -> InvalidOptionError:
    return InvalidOptionError(message, option="questions", value=str(path))


def _refuse_other_json(path: Path, content: bytes) -> None:
    """Raises InvalidOptionError for a file that is one JSON array, or one object over several lines."""
    start = content.lstrip()[:1]
    if start not in (b"[", b"{") or (start == b"{" and _is_json(content.strip().partition(b"\n")[0])):
        return
    if _is_json(content):
        what = "one JSON array" if start == b"[" else "one JSON object over several lines"
        how = ".[]" if start == b"[" else "."
        raise _refused(
            path, f"{path} is {what}, and must have one object a line: jq -c '{how}' {path} > questions.jsonl"
        )


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


class _TwiceError(ValueError):
    """A name stands twice in one object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise _TwiceError(f"{name!r} is given twice")
    return dict(pairs)


def _read_line(line: bytes) -> tuple[Question | None, list[str]]:
    """A question, or what is wrong with the line. Raises UnicodeDecodeError."""
    text = line.decode("utf-8")
    try:
        values = json.loads(text, object_pairs_hook=_object)
    except _TwiceError as error:
        return None, [str(error)]
    except json.JSONDecodeError as error:
        return None, [f"is not JSON ({error.msg} at column {error.colno})"]
    except RecursionError:
        return None, ["is nested too deeply"]
    if not isinstance(values, dict):
        return None, [f"is {type(values).__name__}, not an object; a line looks like {EXAMPLE}"]
    try:
        return Question.model_validate(values), []
    except ValidationError as error:
        return None, [_in_words(dict(own), values) for own in error.errors(include_url=False)]


def _in_words(finding: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in finding["loc"])
    if finding["type"] == "extra_forbidden":
        known = [name for name in Question.model_fields if name not in values]
        close = difflib.get_close_matches(where.casefold(), known, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]!r}?" if close else f"fields are {', '.join(Question.model_fields)}"
        return f"{where!r} is no field of a question; {hint}"
    reason = finding["msg"].removeprefix("Value error, ")
    if finding["type"] == "string_type" and isinstance(finding["input"], int | float):
        reason = f"must be text, got {finding['input']!r}; put it in quotes"
    elif finding["type"] == "list_type":
        reason = f"must be a list, got {finding['input']!r}; put it in brackets"
    elif finding["type"] != "value_error":
        reason = f"{reason}, got {finding['input']!r}"
    return f"{where} {reason}" if where else reason


def _told(path: Path, found: Sequence[tuple[int, str]]) -> str:
    """Problems by what they are, in the order of the file; one line for each, but for a single one."""
    lines_of: dict[str, list[int]] = defaultdict(list)
    for line, problem in found:
        lines_of[problem].append(line)
    told = [f"{_lines(numbers)}: {problem}" for problem, numbers in lines_of.items()]
    if len(told) == 1:
        return f"{path}, {told[0]}"
    more = [f"and {len(told) - MOST_PROBLEMS} more"] if len(told) > MOST_PROBLEMS else []
    bad = len({line for line, _ in found})
    return "\n  ".join([f"{path}: {bad} lines are not questions that can be asked", *told[:MOST_PROBLEMS], *more])


def _lines(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"line {numbers[0]}"
    shown = ", ".join(map(str, numbers[:MOST_LINES]))
    return f"lines {shown}" if len(numbers) <= MOST_LINES else f"lines {shown}, ... ({len(numbers)} lines)"


def _warnings(questions: Sequence[Question], lines: Sequence[int]) -> list[str]:
    """Questions that are asked several times: they count as often, and make intervals narrower than they are."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, key in enumerate(keys_of(questions)):
        places[key.partition("#")[0]].append(place)
    found = []
    for twice in (own for own in places.values() if len(own) > 1):
        differ = len({json.dumps(questions[place].answers) for place in twice}) > 1
        also = " with different answers" if differ else ""
        text = questions[twice[0]].text()
        shown = text if len(text) <= 60 else text[:60] + " ..."
        found.append(f"{_lines([lines[place] for place in twice])} ask the same{also}: {shown!r}")
    if len(found) > MOST_PROBLEMS:
        found = [*found[:MOST_PROBLEMS], f"and {len(found) - MOST_PROBLEMS} more questions are asked several times"]
    return found
