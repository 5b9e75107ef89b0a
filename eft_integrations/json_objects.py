"""Objects out of JSON that a model writes, whole and while it is being written."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

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

    def whole(self, text: str, *, was_cut: bool) -> Model:
        """The object of a whole answer.

        Raises:
            ValueError: the answer was cut off inside the JSON, or breaks a rule that a schema cannot express (a validator).
        """
        try:
            return self._output_cls.model_validate_json(text)
        except ValidationError as error:
            if not was_cut:
                raise
            raise ValueError(
                f"the answer reached max_tokens inside the JSON of {self._output_cls.__name__}: {text!r}; give it more tokens"
            ) from error

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
