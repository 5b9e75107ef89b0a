"""Objects out of JSON that a model writes, whole and while it is being written."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from eft_engine import errors

Model = TypeVar("Model", bound=BaseModel)


def partial_object(text: str) -> dict[str, object] | None:
    """The object that a text begins, as far as it is written; None where it is none, or nothing of it can be read yet.

    >>> partial_object('{"name": "An'), partial_object("[1"), partial_object("")
    ({'name': 'An'}, None, None)
    """
    try:
        value = from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class _Brackets:
    """What is open in a JSON text after each of its characters."""

    def __init__(self) -> None:
        self.closers: list[str] = []
        self.in_string = False
        self.is_escaped = False

    def add(self, character: str) -> None:
        """The next character."""
        if self.in_string:
            self.in_string = character != '"' or self.is_escaped
            self.is_escaped = character == "\\" and not self.is_escaped
        elif character == '"':
            self.in_string = True
        elif character in "{[":
            self.closers.append("}" if character == "{" else "]")
        elif character in "}]" and self.closers:
            self.closers.pop()


def breaking_end(text: str) -> str:
    """What to write behind the JSON of a call that is none, so that nobody takes it for one, not even a reader that mends JSON
    which breaks off: a bracket that nothing has opened.

    >>> breaking_end('{"a": [1'), breaking_end('{"a": "b'), breaking_end('{"a": 1}'), breaking_end("")
    ('}', '"]', ']', ']')
    """
    brackets = _Brackets()
    for character in text:
        brackets.add(character)
    quote = '"' if brackets.in_string else ""
    wrong = "}" if brackets.closers and brackets.closers[-1] == "]" else "]"
    return f"{quote}{quote if brackets.is_escaped else ''}{wrong}"


def breaks_off(text: str) -> bool:
    """Whether the first object of a text is not closed; what follows it does not matter, nor whether it is JSON.

    >>> breaks_off('go: {"a": {"b": 1}'), breaks_off('go: {"a": {"b": 1}} "and {so on'), breaks_off("go")
    (True, False, False)
    """
    brackets = _Brackets()
    for character in text[text.find("{") :] if "{" in text else "":
        brackets.add(character)
        if not brackets.closers:
            return False
    return bool(brackets.closers)


class ObjectReader(Generic[Model]):
    """Reads one object of a pydantic class.

    Args:
        output_cls: the class.
        flexible: makes of it a class in which fields may be missing, for what is not whole yet.
    """

    def __init__(self, output_cls: type[Model], flexible: Callable[[type[Model]], type[BaseModel]]) -> None:
        self._output_cls = output_cls
        self._flexible = cache(flexible)
        self._last: dict[str, object] | None = None

    def whole(self, text: str, *, was_cut: bool, fault: str | None = None) -> Model:
        """The object of a whole answer.

        Args:
            text: what was written.
            was_cut: whether it reached its budget.
            fault: why it is known not to be what the schema says.

        Raises:
            IncompleteOutputError: the answer was cut off inside the JSON.
            OutputError: it breaks its schema, or a rule that no schema can express (a validator).
        """
        name = self._output_cls.__name__
        try:
            found = self._output_cls.model_validate_json(text)
        except ValidationError as error:
            if not was_cut:
                finding = error.errors(include_url=False)[0]
                where = "".join(f"{part}: " for part in (".".join(map(str, finding["loc"])),) if part)
                raise errors.OutputError(f"{where}{finding['msg']}, so it is no {name}: {text!r}", text=text) from error
            raise errors.IncompleteOutputError(
                f"the answer reached max_tokens before the JSON of {name} was whole: {text!r}; give it more tokens, or bound its "
                "thought with reasoning_budget",
                text=text,
            ) from error
        if fault is not None:
            raise errors.OutputError(f"{fault}, so it is no {name}: {text!r}", text=text)
        return found

    def partial(self, text: str) -> Model | BaseModel | None:
        """The object so far: of the class itself as soon as that validates. None where the text brings nothing new."""
        value = partial_object(text)
        if value is None or value == self._last:
            return None
        self._last = value
        try:
            return self._output_cls.model_validate(value)
        except ValidationError:
            return self._flexible(self._output_cls).model_validate(value)
