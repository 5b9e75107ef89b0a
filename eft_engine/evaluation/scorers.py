"""Scorers: does an answer count? By the expected answers, by a pattern, by a JSON schema, or by a judge."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from eft_engine.errors import InvalidOptionError
from eft_engine.evaluation.questions import Question
from eft_engine.outputs import RequestOutput


class Scorer(Protocol):
    """Decides whether an answer counts. One with a true `needs_whole` is not asked about those that max_tokens cut; they do not.

    A method `missing(question)` may tell, before anything is asked, what a question lacks (None: nothing).
    """

    @property
    def name(self) -> str:
        """What the report calls it."""
        ...

    def score(self, question: Question, answer: str) -> bool:
        """Whether `answer` counts for `question`."""
        ...


def marks_of(scorers: Sequence[Scorer], question: Question, answer: RequestOutput) -> dict[str, bool]:
    """Which scorers count an answer."""
    is_cut = answer.finish_reason == "length"
    return {
        scorer.name: not (is_cut and getattr(scorer, "needs_whole", False)) and scorer.score(question, answer.text)
        for scorer in scorers
    }


def scored_by(scorers: Sequence[Scorer], question: Question) -> str:
    """Tells whether marks are still those that scorers would give: what they are, and what they compare with."""
    told = [[_definition(scorer) for scorer in scorers], question.answers, question.pattern]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _definition(thing: object) -> Any:
    """Its type and whatever of it JSON can hold; of a chat model that is its name."""
    own = {"name": getattr(thing, "name", None), **getattr(thing, "__dict__", {})}
    told = {name: _plain(value) for name, value in own.items() if not name.startswith("_")}
    return [type(thing).__module__, type(thing).__qualname__, told]


def _plain(value: object) -> Any:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        kind = type(value)
        names = [getattr(value, name, None) for name in ("model", "model_name")]
        return [kind.__module__, kind.__qualname__, *(name for name in names if isinstance(name, str))]
    return value


def normalised(text: str, *, fold_accents: bool = False) -> str:
    """Lower case, punctuation and repeated spaces gone; `fold_accents`: marks on letters too.

    >>> normalised(" Port-au-Prince. ")
    'port au prince'
    >>> normalised("Bogotá"), normalised("Bogotá", fold_accents=True)
    ('bogotá', 'bogota')
    """
    composed = unicodedata.normalize("NFC", text).casefold()  # a letter and its mark may be one character or two
    if fold_accents:
        parts = unicodedata.normalize("NFKD", composed)
        composed = "".join(letter for letter in parts if not unicodedata.combining(letter))
    return " ".join(re.sub(r"[^\w]+", " ", composed).split())


@dataclass(frozen=True)
class ExactMatch:
    """One of the question's answers, up to case and punctuation; `anywhere`: as whole words inside a longer answer;
    `fold_accents`: up to accents, too.

    >>> scorer, question = ExactMatch(), Question(question="Capital of France?", answers=["Paris"])
    >>> scorer.score(question, "paris."), scorer.score(question, "It is Paris.")
    (True, False)
    >>> ExactMatch(anywhere=True).score(question, "It is Paris.")
    True
    """

    anywhere: bool = False
    name: str = "exact"
    fold_accents: bool = False

    def missing(self, question: Question) -> str | None:
        """What the question lacks to be scored."""
        if not question.answers:
            return "has no answers to compare with; add answers"
        empty = [answer for answer in question.answers if not self._normalised(answer)]
        return f"answers: {empty[0]!r} has no letters or digits, which are all that is compared" if empty else None

    def score(self, question: Question, answer: str) -> bool:
        """Whether an expected answer was given.

        Raises:
            InvalidOptionError: the question has no answers.
        """
        if not question.answers:
            raise InvalidOptionError(f"the question {question.text()!r} has no answers to compare with; add answers")
        given = self._normalised(answer)
        if self.anywhere:
            return any(f" {self._normalised(expected)} " in f" {given} " for expected in question.answers)
        return any(self._normalised(expected) == given for expected in question.answers)

    def _normalised(self, text: str) -> str:
        return normalised(text, fold_accents=self.fold_accents)


class PatternMatch:
    r"""A regular expression that the whole answer must match; a question's own `pattern` takes its place.

    A group named `answer` must besides hold one of the question's answers, where it has any: form and content in one.

    >>> scorer = PatternMatch(r"The answer is (?P<answer>.+)\.")
    >>> scorer.score(Question(question="Capital of France?", answers=["Paris"]), "The answer is Paris.")
    True
    """

    def __init__(self, pattern: str | None = None, *, name: str = "regex", fold_accents: bool = False) -> None:
        """Raises InvalidOptionError for a pattern that is none. `fold_accents`: where its answer is compared."""
        self.name = name
        self.pattern, self.fold_accents = pattern, fold_accents
        self._pattern = None if pattern is None else _compiled(pattern)

    def missing(self, question: Question) -> str | None:
        """What the question lacks to be scored."""
        if self._pattern is None and question.pattern is None:
            return "has no pattern, and none was given for all"
        return None

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
        return (
            found is None or not question.answers or ExactMatch(fold_accents=self.fold_accents).score(question, found)
        )


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
        self.schema = dict(schema)
        self._validator = validator(self.schema)

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
