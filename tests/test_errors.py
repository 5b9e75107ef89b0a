"""Errors carry their numbers as fields and share one root."""

from __future__ import annotations

import inspect

import pytest

from eft_engine import errors


def test_every_error_has_the_one_root() -> None:
    classes = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, Exception)]
    assert len(classes) > 15
    assert all(issubclass(value, errors.EFTError) for value in classes)


@pytest.mark.parametrize("kind", [errors.ConfigurationError, errors.RequestError])
def test_wrong_arguments_are_value_errors(kind: type[Exception]) -> None:
    assert issubclass(kind, ValueError)


def test_numbers_are_fields() -> None:
    overflow = errors.ContextOverflowError("long", prompt_len=300, context_len=256)
    memory = errors.LoadOutOfMemoryError(
        "big", needed_bytes=10, available_bytes=5, device="cpu", member="base", source="x"
    )
    difference = errors.TokenDifference(3, (("base", "a"), ("tuned", "b")))
    mismatch = errors.VocabularyMismatchError("other", differences=[difference], num_differences=7)
    unknown = errors.UnknownPairError("who", name="x", known=["chat"])
    assert (overflow.prompt_len, overflow.context_len) == (300, 256)
    assert (memory.needed_bytes, memory.available_bytes, memory.member) == (10, 5, "base")
    assert (mismatch.differences, mismatch.num_differences) == ((difference,), 7)
    assert (unknown.name, unknown.known) == ("x", ("chat",))
    assert str(difference) == "id 3 is 'a' in base, 'b' in tuned"
