"""Every error the engine raises, under one root.

    EFTError
    ├── ConfigurationError            what was asked for cannot be meant
    │   ├── InvalidOptionError        an option has a wrong name, type or range
    │   └── VocabularyMismatchError   the members do not mean the same token by the same id
    ├── LoadError                     a member could not be loaded
    │   ├── ModelNotFoundError        nothing is at the given place
    │   ├── CorruptWeightsError       files are there and cannot be read as this model's weights
    │   ├── UnsafeWeightsError        only pickled weights are there; they are never opened
    │   ├── TokenizerMissingError     the model came without a tokenizer
    │   ├── UnsupportedModelError     the architecture cannot be run by the engine
    │   ├── UnsupportedAdapterError   the adapter cannot be held, or not in the way that was asked for
    │   └── LoadOutOfMemoryError      the weights do not fit
    ├── RequestError                  one request is wrong; the engine is fine
    │   ├── EmptyPromptError
    │   ├── ChatTemplateError
    │   ├── InvalidGrammarError
    │   ├── UnknownTokenError
    │   ├── ContextOverflowError
    │   ├── UnknownPairError
    │   └── InvalidWeightError
    ├── QueueFullError                too many requests wait; try again later
    ├── GenerationError               one request failed while it ran; the engine is fine
    │   ├── NonFiniteLogitsError
    │   ├── KVCacheBudgetError        the request does not fit into the key/value budget, even alone
    │   └── EngineStepError           something went wrong in a step; the cause is chained
    │       └── StepOutOfMemoryError  the request does not fit even when it runs alone
    ├── OutputError                   what a model wrote cannot be what was asked for: it breaks a rule of it
    │   ├── IncompleteOutputError     max_tokens ended it before it was whole
    │   └── NoToolCallError           it calls no tool, and a call was asked for
    ├── TensorParallelError           a process that holds part of a network is lost or failed
    ├── RemoteServerError             a server that holds the models cannot be reached, or failed
    ├── EnginesForbiddenError         a test suite forbids to load anything by name
    └── EngineClosedError             the engine was closed
        └── ForkedEngineError         it belongs to the process that this one was forked from

Numbers that a caller may act on are fields, never only words in the message.

None of them is a `ValueError` or a `TypeError`: frameworks catch those where they read what a model wrote, and go on as if it had
written nothing. A wrong request must not end as an empty answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class EFTError(Exception):
    """Root of all errors of this package. Copies and pickles keep the fields, so that errors can leave their process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[EFTError], args: tuple[Any, ...], fields: dict[str, Any]) -> EFTError:
    """An error as it was: `__init__` is not called again, since it wants keywords that `args` does not hold."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class ConfigurationError(EFTError):
    """What was asked for cannot be meant."""


class InvalidOptionError(ConfigurationError):
    """An option has a wrong name, a wrong type or a value out of range.

    `option` is the field's name, `value` what arrived.
    """

    def __init__(self, message: str, *, option: str | None = None, value: object = None) -> None:
        super().__init__(message)
        self.option = option
        self.value = value


@dataclass(frozen=True)
class TokenDifference:
    """One id under which members mean different tokens; `tokens` maps member name to its token text."""

    token_id: int
    tokens: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"id {self.token_id} is " + ", ".join(f"{token!r} in {name}" for name, token in self.tokens)


class VocabularyMismatchError(ConfigurationError):
    """Members do not mean the same token by the same id, so their distributions cannot be combined.

    `differences` are the first ids that differ, `num_differences` how many there are in all.
    """

    def __init__(self, message: str, *, differences: Sequence[TokenDifference], num_differences: int) -> None:
        super().__init__(message)
        self.differences = tuple(differences)
        self.num_differences = num_differences


class LoadError(EFTError):
    """A member could not be loaded. `member` is its role (base, chat.tuned, ...), `source` where it was looked for."""

    def __init__(self, message: str, *, member: str | None = None, source: str | None = None) -> None:
        super().__init__(message)
        self.member = member
        self.source = source


class ModelNotFoundError(LoadError):
    """Nothing is at the given place."""


class CorruptWeightsError(LoadError):
    """Files are there, and they cannot be read as this model's weights."""


class UnsafeWeightsError(LoadError):
    """Only pickled weights are there. They can run code when opened, so they are never opened."""


class TokenizerMissingError(LoadError):
    """The model came without a tokenizer."""


class UnsupportedModelError(LoadError):
    """The architecture cannot be run by the engine; the message says which member, why, and what to do (docs/models.md)."""


class UnsupportedAdapterError(LoadError):
    """The adapter cannot be held by any network, or not in the way that was asked for: the message says why, and what to do.

    `reason` is why llama.cpp has no place for it, which torch may have; None: it is another matter.
    """

    def __init__(
        self, message: str, *, member: str | None = None, source: str | None = None, reason: str | None = None
    ) -> None:
        super().__init__(message, member=member, source=source)
        self.reason = reason


class LoadOutOfMemoryError(LoadError):
    """The weights do not fit: `needed_bytes` against `available_bytes` on `device` (None where unknown)."""

    def __init__(
        self,
        message: str,
        *,
        needed_bytes: int | None,
        available_bytes: int | None,
        device: str,
        member: str | None = None,
        source: str | None = None,
    ) -> None:
        super().__init__(message, member=member, source=source)
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes
        self.device = device


class RequestError(EFTError):
    """One request is wrong. The engine and all other requests go on."""


class EmptyPromptError(RequestError):
    """The prompt has no tokens, so there is nothing to continue."""


class ChatTemplateError(RequestError):
    """The messages could not be rendered: no chat template, a malformed message, or the template refused them."""


class InvalidGrammarError(RequestError):
    """A schema, expression or grammar is malformed, or asks for something that cannot be enforced."""


class UnknownTokenError(RequestError):
    """A token id that a model cannot read, or that is never generated. `token_id` is the id, `member` who does not know it."""

    def __init__(self, message: str, *, token_id: int, member: str) -> None:
        super().__init__(message)
        self.token_id = token_id
        self.member = member


class ContextOverflowError(RequestError):
    """The prompt leaves no room: `prompt_len` tokens against a context of `context_len` tokens."""

    def __init__(self, message: str, *, prompt_len: int, context_len: int) -> None:
        super().__init__(message)
        self.prompt_len = prompt_len
        self.context_len = context_len


class UnknownPairError(RequestError):
    """`reward_weights` names a pair that the engine does not have. `known` lists those it has."""

    def __init__(self, message: str, *, name: str, known: Sequence[str]) -> None:
        super().__init__(message)
        self.name = name
        self.known = tuple(known)


class InvalidWeightError(RequestError):
    """A reward weight is not a finite number. `value` is what arrived."""

    def __init__(self, message: str, *, value: object) -> None:
        super().__init__(message)
        self.value = value


class GenerationError(EFTError):
    """One request failed while it ran. The engine and all other requests go on."""


class NonFiniteLogitsError(GenerationError):
    """A member returned NaN or +inf, or the members together forbid every token. `position` is the output position."""

    def __init__(self, message: str, *, position: int) -> None:
        super().__init__(message)
        self.position = position


class KVCacheBudgetError(GenerationError):
    """A request needs more key/value cache than `EngineConfig.max_kv_cache_bytes` allows, although nothing runs beside it."""

    def __init__(self, message: str, *, needed_bytes: int, max_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.max_bytes = max_bytes


class EngineStepError(GenerationError):
    """A step of the engine failed for this request, also when it was run alone; the cause is chained."""


class StepOutOfMemoryError(EngineStepError):
    """Memory ran out for this request, although nothing ran beside it and no finished prompt was kept."""


class QueueFullError(EFTError):
    """More requests wait than `EngineConfig.max_queued_requests` allows; nothing of the call was queued. Try again later.

    `num_queued` requests wait, `limit` may.
    """

    def __init__(self, message: str, *, num_queued: int, limit: int) -> None:
        super().__init__(message)
        self.num_queued = num_queued
        self.limit = limit


class OutputError(EFTError):
    """What a model wrote is not what was asked for: it breaks a rule that no mask can hold, or that a schema cannot express.

    `text` is what it wrote.
    """

    def __init__(self, message: str, *, text: str) -> None:
        super().__init__(message)
        self.text = text


class IncompleteOutputError(OutputError):
    """`max_tokens` ended the answer before what was asked for was whole. Give it more tokens, or bound its thought."""


class NoToolCallError(OutputError):
    """The answer calls no tool, and the caller needs one."""


class TensorParallelError(EFTError):
    """A process that holds part of a tensor-parallel network is lost or failed, so the network can no longer be run.

    `rank` is this process's own. Start all processes again.
    """

    def __init__(self, message: str, *, rank: int) -> None:
        super().__init__(message)
        self.rank = rank


class RemoteServerError(EFTError):
    """A server that holds the models cannot be reached, refused us, or failed. `status` is what it answered, None if it did not."""

    def __init__(self, message: str, *, status: int | None) -> None:
        super().__init__(message)
        self.status = status


class EnginesForbiddenError(EFTError):
    """A switch for tests forbids to load anything by name, or to ask a server. `name` is what would have been (docs/testing.md)."""

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


class EngineClosedError(EFTError):
    """The engine was closed before or while the request ran."""


class ForkedEngineError(EngineClosedError):
    """The engine belongs to the process that this one was forked from: its thread is there, and here is a copy of its memory.

    `pid` is that process's.
    """

    def __init__(self, message: str, *, pid: int) -> None:
        super().__init__(message)
        self.pid = pid
