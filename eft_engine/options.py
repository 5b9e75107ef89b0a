"""What all option objects have in common: unknown names, wrong types and values out of range raise `InvalidOptionError`; nothing is
dropped in silence.
"""

from __future__ import annotations

import difflib
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from eft_engine.errors import InvalidOptionError


class Options(BaseModel):
    """Base of all option objects: frozen, unknown names refused, errors typed."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, ser_json_inf_nan="strings")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            refusal = error.errors()[0].get("ctx", {}).get("error")
            if isinstance(refusal, _Refusal):
                raise refusal.meaning from None
            raise _as_option_error(type(self), error) from None  # of a validator of the whole object

    # Like pydantic's own: options inside another model are validated as a part of it, whose error then names both.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="wrap")
    @classmethod
    def _told_in_words(cls, values: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return validate(values)
        except ValidationError as error:
            raise _Refusal(_as_option_error(cls, error)) from None


class _Refusal(ValueError):
    """What pydantic is told of wrong options; it takes a ValueError for a finding."""

    def __init__(self, meaning: InvalidOptionError) -> None:
        super().__init__(str(meaning))
        self.meaning = meaning


def _as_option_error(options: type[BaseModel], error: ValidationError) -> InvalidOptionError:
    """The first finding of pydantic, in our words and with a suggestion for a misspelt name."""
    finding = error.errors()[0]
    option = ".".join(str(part) for part in finding["loc"])
    value = finding["input"]
    if finding["type"] == "extra_forbidden":
        known = list(options.model_fields)
        close = difflib.get_close_matches(option, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known options: {', '.join(known)}"
        message = f"{options.__name__} has no option {option!r} (value {value!r}); {hint}"
    else:
        reason = finding["msg"].removeprefix("Value error, ")
        message = f"{'.'.join(filter(None, (options.__name__, option)))}: {reason}; got {value!r}"
    return InvalidOptionError(message, option=option, value=value)
