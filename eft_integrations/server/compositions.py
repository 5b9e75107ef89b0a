"""What the server serves: compositions, each a name, a backend and the pairs of it that belong to the name.

Compositions over one base share an engine that holds all their pairs: a pair that does not belong to a composition has weight 0 in
it, and what has weight 0 is not run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from eft_engine import errors
from eft_engine.config import RewardWeights, resolve_weights
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.chat.request import ChatRequest, ChatResult
from eft_integrations.server.callers.callers import ANYBODY, Caller
from eft_integrations.server.callers.weight_policy import OPERATORS_OWN, WeightPolicy, check_weights, described
from eft_integrations.server.errors import INVALID, ApiError, Kind, shortened
from eft_integrations.weights import HEADER, first_given, parse_alias, parse_weights


@dataclass(frozen=True)
class Composition:
    """One model of the server.

    `weights` are the composition's own, by pair name; only these pairs belong to it. `weight_policy` bounds what requests may ask
    for. `chat_template` replaces the backend's own;
    `tool_notation` is how the model writes calls and `reasoning_tags` are the texts around its thoughts, where its template does
    not say.
    """

    name: str
    backend: ChatBackend
    weights: Mapping[str, float]
    weight_policy: WeightPolicy = OPERATORS_OWN
    chat_template: str | None = None
    tool_notation: str | None = None
    reasoning_tags: tuple[str, str] | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, name: str, backend: ChatBackend) -> Composition:
        """Everything that a backend has, with its own weights."""
        return cls(name, backend, backend.weights)

    @property
    def fingerprint(self) -> str:
        """Changes when the same request may get another answer."""
        known = f"{self.backend.identity} {sorted(self.weights.items())}"
        return f"fp_{hashlib.sha256(known.encode()).hexdigest()[:12]}"

    def settle(self, asked: RewardWeights) -> dict[str, float]:
        """Weights of all the backend's pairs: a number means the composition's pairs, pairs that are not named keep their own.

        Raises:
            UnknownPairError: a pair that does not belong to the composition.
            InvalidWeightError: a weight is not a finite number.
        """
        own = resolve_weights(asked, self.weights, owner=repr(self.name))
        return {**dict.fromkeys(self.backend.weights, 0.0), **own}

    def own_weights(self, asked: RewardWeights) -> dict[str, float]:
        """Weights of the composition's own pairs; errors as for `settle`."""
        return resolve_weights(asked, self.weights, owner=repr(self.name))

    def check(self, asked: RewardWeights, caller: Caller) -> None:
        """Check what a caller asks for against the policy: the caller's own, else the composition's.

        Raises:
            WeightForbiddenError: a weight is outside.
            UnknownPairError, InvalidWeightError: as for `settle`.
        """
        own = resolve_weights(asked, self.weights, owner=repr(self.name))
        check_weights(own, self.weights, caller.weight_policy.over(self.weight_policy))

    def allowed(self, caller: Caller) -> dict[str, object]:
        """What a caller may ask for, by pair name: free, fixed, or [low, high]."""
        return described(self.weights, caller.weight_policy.over(self.weight_policy))

    def ask(self, request: ChatRequest) -> ChatRequest:
        """A request in the backend's terms."""
        return dataclasses.replace(
            request,
            reward_weights=self.settle(request.reward_weights),
            chat_template=self.chat_template,
            tool_notation=request.tool_notation or self.tool_notation,
            reasoning_tags=request.reasoning_tags or self.reasoning_tags,
        )

    def count_prompt_tokens(self, request: ChatRequest) -> int:
        """Tokens of a request's prompt.

        Raises:
            ContextOverflowError: the engine is of this process, and the prompt is certain not to fit; it is not tokenised then.
        """
        asked = self.ask(request)
        if isinstance(self.backend, EngineBackend):
            return self.backend.count_prompt_tokens(asked, must_fit=True)
        return self.backend.count_prompt_tokens(asked)

    def report(self, result: ChatResult) -> dict[str, Any]:
        """A result's metadata, without the pairs of others."""
        weights = {pair: result.metadata["reward_weights"][pair] for pair in self.weights}
        return {**result.metadata, "reward_weights": weights}


@dataclass(frozen=True)
class Chosen:
    """What a request's model name and weights come to."""

    composition: Composition
    model: str
    reward_weights: RewardWeights


class Compositions:
    """All compositions of a server, by name."""

    def __init__(self, compositions: Iterable[Composition]) -> None:
        self._by_name = {composition.name: composition for composition in compositions}
        if not self._by_name:
            raise errors.InvalidOptionError("a server needs at least one composition", option="compositions")

    def __iter__(self) -> Iterator[Composition]:
        return iter(self._by_name.values())

    @property
    def backends(self) -> list[ChatBackend]:
        """All different backends."""
        return list({id(own.backend): own.backend for own in self}.values())

    def of(self, caller: Caller) -> list[Composition]:
        """What a caller may use."""
        return [own for own in self if caller.may_use(own.name)]

    def find(self, name: str, caller: Caller = ANYBODY) -> Composition:
        """The composition of a name.

        Raises:
            ApiError: there is none that the caller may use (404).
        """
        found = self._by_name.get(name)
        if found is None or not caller.may_use(name):
            there = ", ".join(own.name for own in self.of(caller))
            raise ApiError(
                f"there is no model {shortened(name)!r} for you; you can use {there or 'none'}",
                Kind(404, INVALID, "model_not_found", "model"),
            )
        return found

    def choose(self, model: str, *, body: RewardWeights, header: str | None, caller: Caller = ANYBODY) -> Chosen:
        """The composition, and the weights by the order: body, header, alias behind the name, the composition's own.

        Raises:
            ApiError: there is no such model.
            InvalidOptionError: the header or the alias cannot be read.
            WeightForbiddenError: the policy does not allow the weights.
            UnknownPairError, InvalidWeightError: as for `Composition.settle`.
        """
        name, alias = model, None
        if model not in self._by_name:
            try:
                name, alias = parse_alias(model)
            except ValueError as error:
                raise errors.InvalidOptionError(str(error), option="model", value=model) from None
        composition = self.find(name, caller)
        try:
            carried = parse_weights(header) if header is not None else None
        except ValueError as error:
            raise errors.InvalidOptionError(str(error), option=HEADER, value=header) from None
        asked = first_given(body, carried, alias)
        composition.check(asked, caller)
        return Chosen(composition, model, asked)

    def replace_policies(self, policies: Mapping[str, WeightPolicy]) -> None:
        """Other policies, by composition, for the requests that come from now on."""
        self._by_name = {
            name: dataclasses.replace(own, weight_policy=policies.get(name, own.weight_policy))
            for name, own in self._by_name.items()
        }

    def close(self) -> None:
        """Close all engines."""
        for backend in self.backends:
            if isinstance(backend, EngineBackend):
                backend.close()
