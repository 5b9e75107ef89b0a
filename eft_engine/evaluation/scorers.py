"""Scorers: does an answer count? By the expected answers, by a pattern, by a JSON schema, or by a judge."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.questions import Question


class Scorer(Protocol):
    """Decides whether an answer counts. One with a true `needs_whole` is not asked about those that max_tokens cut; they do not."""

    @property
    def name(self) -> str:
        """What the report calls it."""
        ...

    def score(self, question: Question, answer: str) -> bool:
        """Whether `answer` counts for `question`."""
        ...


def normalised(text: str) -> str:
    """Lower case, punctuation and repeated spaces gone.

    >>> normalised(" Port-au-Prince. ")
    'port au prince'
    """
    return " ".join(re.sub(r"[^\w]+", " ", text.casefold()).split())


@dataclass(frozen=True)
class ExactMatch:
    """One of the question's answers, up to case and punctuation; `anywhere`: as whole words inside a longer answer.

    >>> scorer, question = ExactMatch(), Question(question="Capital of France?", answers=["Paris"])
    >>> scorer.score(question, "paris."), scorer.score(question, "It is Paris.")
    (True, False)
    >>> ExactMatch(anywhere=True).score(question, "It is Paris.")
    True
    """

    anywhere: bool = False
    name: str = "exact"

    def score(self, question: Question, answer: str) -> bool:
        """Whether an expected answer was given.

        Raises:
            InvalidOptionError: the question has no answers.
        """
        if not question.answers:
            raise InvalidOptionError(f"the question {question.text()!r} has no answers to compare with; add answers")
        given = normalised(answer)
        if self.anywhere:
            return any(f" {normalised(expected)} " in f" {given} " for expected in question.answers)
        return any(normalised(expected) == given for expected in question.answers)


class PatternMatch:
    r"""A regular expression that the whole answer must match; a question's own `pattern` takes its place.

    A group named `answer` must besides hold one of the question's answers, where it has any: form and content in one.

    >>> scorer = PatternMatch(r"The answer is (?P<answer>.+)\.")
    >>> scorer.score(Question(question="Capital of France?", answers=["Paris"]), "The answer is Paris.")
    True
    """

    def __init__(self, pattern: str | None = None, *, name: str = "regex") -> None:
        """Raises InvalidOptionError for a pattern that is none."""
        self.name = name
        self._pattern = None if pattern is None else _compiled(pattern)

    def score(self, question: Question, answer: str) -> bool:
        """Whether the whole answer matches.

        Raises:
            InvalidOptionError: neither the scorer nor the question has a pattern, or the question's is none.
        """
        pattern = self._pattern if question.pattern is None else _compiled(question.pattern)
        if pattern is None:
            raise InvalidOptionError(f"no pattern was given for the question {question.text()!r}", option="pattern")
        match = pattern.fullmatch(answer.strip())
        if match is None:
            return False
        found = match.groupdict().get("answer")
        return found is None or not question.answers or ExactMatch().score(question, found)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise InvalidOptionError(
            f"not a regular expression: {pattern!r} ({error})", option="pattern", value=pattern
        ) from None


class SchemaMatch:
    """The answer is JSON that a schema accepts, and was not cut: `12` may have been about to be `123`."""

    name = "schema"
    needs_whole = True

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Raises InvalidOptionError when the schema is invalid."""
        import jsonschema

        validator = jsonschema.validators.validator_for(dict(schema))
        try:
            validator.check_schema(dict(schema))
        except jsonschema.SchemaError as error:
            raise InvalidOptionError(f"not a JSON schema: {error.message}", option="schema") from None
        self._validator = validator(dict(schema))

    def score(self, question: Question, answer: str) -> bool:
        """Whether the answer is JSON of the schema."""
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            return False
        return bool(self._validator.is_valid(value))


class ChatModel(Protocol):
    """What a judge must be able to do; every LangChain chat model can."""

    def invoke(self, input: Any, /) -> Any:
        """A message, whose `content` is the text, or the text itself."""
        ...


JUDGE_PROMPT = """\
Question:
{question}
{expected}
Answer to judge:
{answer}

{criterion} Reply with one word, yes or no."""


@dataclass(frozen=True)
class Judge:
    """A chat model that is asked whether the answer is good; a reply that begins with yes counts.

    The model comes from the caller: anything with LangChain's `invoke`.
    """

    model: ChatModel
    criterion: str = "Is the answer correct?"
    name: str = "judge"

    def score(self, question: Question, answer: str) -> bool:
        """Whether the judge says yes.

        Raises:
            InvalidOptionError: the reply is neither yes nor no.
        """
        expected = f"\nExpected answer: {' or '.join(question.answers)}\n" if question.answers else ""
        reply = self.model.invoke(
            JUDGE_PROMPT.format(question=question.text(), expected=expected, answer=answer, criterion=self.criterion)
        )
        text = getattr(reply, "content", reply)
        if isinstance(text, list):  # content blocks
            text = "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in text)
        word = normalised(str(text)).partition(" ")[0]
        if word not in ("yes", "no"):
            raise InvalidOptionError(f"the judge must reply yes or no, got {text!r}", option="judge", value=text)
        return word == "yes"
