"""Objects of a pydantic class out of JSON that is decoded under its schema, while it arrives and at its end."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.program.utils import create_flexible_model
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

Model = TypeVar("Model", bound=BaseModel)


def response_format(output_cls: type[BaseModel]) -> dict[str, Any]:
    """The keyword with which a call is decoded under the class's schema."""
    wanted = {"name": output_cls.__name__, "schema": output_cls.model_json_schema()}
    return {"type": "json_schema", "json_schema": wanted}


def whole_object(output_cls: type[Model], response: ChatResponse) -> Model:
    """The object of a whole answer.

    Raises:
        ValueError: the answer was cut off inside the JSON, or breaks a rule that a schema cannot express (a validator).
    """
    text = response.message.content or ""
    try:
        return output_cls.model_validate_json(text)
    except ValidationError as error:
        if (response.raw or {})["choices"][0]["finish_reason"] == "length":
            raise ValueError(
                f"the answer reached max_tokens inside the JSON of {output_cls.__name__}: {text!r}; give it more tokens"
            ) from error
        raise


class PartialObjects(Generic[Model]):
    """Objects of the JSON so far: of the class itself as soon as they validate, before that of LlamaIndex' flexible form of it."""

    def __init__(self, output_cls: type[Model]) -> None:
        self._output_cls = output_cls
        self._flexible = create_flexible_model(output_cls)
        self._last: Any = None

    def feed(self, response: ChatResponse) -> Model | BaseModel | None:
        """The object after this chunk; None where it brings nothing new. The last chunk brings the whole object."""
        if response.raw is not None:
            return whole_object(self._output_cls, response)
        try:
            value = from_json(response.message.content or "", allow_partial="trailing-strings")
        except ValueError:
            return None
        if value == self._last or not isinstance(value, dict):
            return None
        self._last = value
        try:
            return self._output_cls.model_validate(value)
        except ValidationError:
            return self._flexible.model_validate(value)
