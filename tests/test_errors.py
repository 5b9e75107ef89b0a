"""Errors carry their numbers as fields, share one root and survive being copied and pickled."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from eft_engine import errors
from eft_engine.errors import EFTError, TokenDifference

PARENTS: dict[str, str] = {
    "ConfigurationError": "EFTError",
    "InvalidOptionError": "ConfigurationError",
    "VocabularyMismatchError": "ConfigurationError",
    "LoadError": "EFTError",
    "ModelNotFoundError": "LoadError",
    "CorruptWeightsError": "LoadError",
    "UnsafeWeightsError": "LoadError",
    "TokenizerMissingError": "LoadError",
    "UnsupportedModelError": "LoadError",
    "UnsupportedAdapterError": "LoadError",
    "LoadOutOfMemoryError": "LoadError",
    "RequestError": "EFTError",
    "EmptyPromptError": "RequestError",
    "ChatTemplateError": "RequestError",
    "InvalidGrammarError": "RequestError",
    "UnknownTokenError": "RequestError",
    "ContextOverflowError": "RequestError",
    "UnknownPairError": "RequestError",
    "InvalidWeightError": "RequestError",
    "QueueFullError": "EFTError",
    "GenerationError": "EFTError",
    "NonFiniteLogitsError": "GenerationError",
    "KVCacheBudgetError": "GenerationError",
    "EngineStepError": "GenerationError",
    "StepOutOfMemoryError": "EngineStepError",
    "OutputError": "EFTError",
    "IncompleteOutputError": "OutputError",
    "NoToolCallError": "OutputError",
    "TensorParallelError": "EFTError",
    "RemoteServerError": "EFTError",
    "EnginesForbiddenError": "EFTError",
    "EngineClosedError": "EFTError",
    "ForkedEngineError": "EngineClosedError",
}
CLASSES = {
    name: value for name, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, BaseException)
}

DIFFERENCE = TokenDifference(3, (("base", "a"), ("tuned", "b")))
ORIGIN = {"member": "chat.tuned", "source": "folder"}
FIELDS: dict[str, dict[str, Any]] = {
    "InvalidOptionError": {"option": "top_p", "value": 3.0},
    "VocabularyMismatchError": {"differences": (DIFFERENCE,), "num_differences": 7},
    **{name: ORIGIN for name, parent in PARENTS.items() if "LoadError" in (name, parent)},
    "UnsupportedAdapterError": {"reason": "it has biases", **ORIGIN},
    "LoadOutOfMemoryError": {"needed_bytes": 10, "available_bytes": None, "device": "cpu", **ORIGIN},
    "UnknownTokenError": {"token_id": 261, "member": "base"},
    "ContextOverflowError": {"prompt_len": 300, "context_len": 256},
    "UnknownPairError": {"name": "x", "known": ("chat", "json")},
    "InvalidWeightError": {"value": "much"},
    "QueueFullError": {"num_queued": 8, "limit": 8},
    "NonFiniteLogitsError": {"position": 4},
    "KVCacheBudgetError": {"needed_bytes": 20, "max_bytes": 10},
    "OutputError": {"text": "{"},
    "IncompleteOutputError": {"text": "{"},
    "NoToolCallError": {"text": "Yes."},
    "TensorParallelError": {"rank": 1},
    "RemoteServerError": {"status": 503},
    "EnginesForbiddenError": {"name": "org/large"},
    "ForkedEngineError": {"pid": 7},
}


def test_tree_is_as_documented() -> None:
    assert {name: kind.__bases__[0].__name__ for name, kind in CLASSES.items() if name != "EFTError"} == PARENTS
    documented = errors.__doc__ or ""
    order = [line.strip("│├└─ ").split(" ")[0] for line in documented.splitlines() if "─" in line]
    assert order == list(PARENTS)


@pytest.mark.parametrize("name", CLASSES)
def test_no_error_is_of_a_kind_that_frameworks_take_for_unreadable_text(name: str) -> None:
    assert not issubclass(CLASSES[name], ValueError | TypeError)


@pytest.mark.parametrize("name", CLASSES)
def test_message_and_fields_are_kept(name: str) -> None:
    fields = FIELDS.get(name, {})
    error = CLASSES[name]("what was wrong", **fields)
    assert str(error) == "what was wrong"
    assert vars(error) == fields


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "deep", "pickle"]
)
def test_error_survives_a_copy_and_a_pickle(name: str, again: Callable[[EFTError], EFTError]) -> None:
    error = CLASSES[name]("what was wrong", **FIELDS.get(name, {}))
    error.add_note("seen in row 3")
    other = again(error)
    assert type(other) is type(error)
    assert (str(other), vars(other)) == (str(error), vars(error))


def test_lists_in_errors_become_tuples() -> None:
    unknown = errors.UnknownPairError("who", name="x", known=["chat"])
    mismatch = errors.VocabularyMismatchError("other", differences=[DIFFERENCE], num_differences=1)
    assert (unknown.known, mismatch.differences) == (("chat",), (DIFFERENCE,))


def test_token_difference_reads_as_a_sentence() -> None:
    assert str(DIFFERENCE) == "id 3 is 'a' in base, 'b' in tuned"
