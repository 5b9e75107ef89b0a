"""What the server serves: compositions, each a name, a backend and the pairs of it that belong to the name.

Compositions over one base share an engine that holds all their pairs: a pair that does not belong to a composition has weight 0 in
it, and what has weight 0 is not run. Prompt pairs belong to a composition too, or come with a request; no weights of a network are
held for them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from eft_engine import PromptPair, errors
from eft_engine.config import CompositionOptions, RewardWeights, resolve_weights
from eft_engine.weights import Weight, is_schedule, weights_as_json
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.chat.request import ChatRequest, ChatResult
from eft_integrations.server.callers.callers import ANYBODY, Caller
from eft_integrations.server.callers.steering_policy import check_bound, check_plausibility, check_prompt_pairs
from eft_integrations.server.callers.weight_policy import OPERATORS_OWN, WeightPolicy, check_weights, described
from eft_integrations.server.errors import INVALID, ApiError, Kind, shortened
from eft_integrations.server.steering import SHARES, Steering, most_side_tokens
from eft_integrations.weights import HEADER, first_given, parse_alias, parse_weights


@dataclass(frozen=True)
class Composition:
    """One model of the server.

    `weights` are the composition's own, by name of a pair or prompt pair; only these pairs belong to it. `weight_policy` bounds
    what requests may ask for. `prompt_pairs` are its own, and `with_own_weight` names those that the backend has by itself: one
    weight for all does not mean them. `options` are variants of the formula that requests do not choose; its plausibility they may
    raise. `call_weight`, `reasoning_weight` and `call_lookahead` hold for requests that do not say. `takes_prompt_pairs`: whether
    requests may bring some; None: where the policy allows to leave all pairs out. `chat_template` replaces the backend's own;
    `tool_notation` is how the model writes calls and `reasoning_tags` are the texts around its thoughts, where its template does
    not say.
    """

    name: str
    backend: ChatBackend
    weights: Mapping[str, Weight]
    weight_policy: WeightPolicy = OPERATORS_OWN
    prompt_pairs: Mapping[str, PromptPair] = field(default_factory=dict)
    with_own_weight: Collection[str] = ()
    options: CompositionOptions = field(default_factory=CompositionOptions)
    call_weight: RewardWeights = None
    reasoning_weight: RewardWeights = None
    call_lookahead: int | None = None
    takes_prompt_pairs: bool | None = None
    chat_template: str | None = None
    tool_notation: str | None = None
    reasoning_tags: tuple[str, str] | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        """Raises UnknownPairError where a part of the answer has a weight of a pair that is not there."""
        for part in (self.call_weight, self.reasoning_weight):
            self._part_weights(part, {})

    @classmethod
    def of(cls, name: str, backend: ChatBackend) -> Composition:
        """Everything that a backend has, with its own weights."""
        return cls(name, backend, backend.weights)

    @property
    def fingerprint(self) -> str:
        """Changes when the same request may get another answer."""
        said = (self.prompt_pairs, self.options, self.call_weight, self.reasoning_weight, self.call_lookahead)
        known = f"{self.backend.identity} {sorted(weights_as_json(self.weights).items())} {said}"
        return f"fp_{hashlib.sha256(known.encode()).hexdigest()[:12]}"

    @functools.cached_property
    def terms(self) -> frozenset[str]:
        """Pairs without a reference, where an engine of this process holds them."""
        if not isinstance(self.backend, EngineBackend):
            return frozenset()
        held = {member for network in self.backend.stats().networks for member in network.members}
        return frozenset(name for name in self._of_pairs if f"{name}.reference" not in held)

    # ---- weights -------------------------------------------------------------------------------------------------------

    @property
    def _of_pairs(self) -> dict[str, Weight]:
        """Weights of the pairs that are models."""
        others = {*self.prompt_pairs, *self.with_own_weight}
        return {name: weight for name, weight in self.weights.items() if name not in others}

    def own_weights(
        self, asked: RewardWeights, prompt_pairs: Mapping[str, PromptPair] | None = None
    ) -> dict[str, Weight]:
        """Weights of the composition's pairs and of those that a request brings. One for all means the pairs that are models: a
        prompt pair has a weight of its own, which only a mapping changes. Pairs that are not named keep theirs.

        Raises:
            UnknownPairError: a pair that does not belong to the composition.
            InvalidWeightError: a weight is neither a finite number nor a schedule.
        """
        own = {**self.weights, **{name: pair.weight for name, pair in (prompt_pairs or {}).items()}}
        if asked is None or (isinstance(asked, Mapping) and not is_schedule(asked)):
            return resolve_weights(asked, own, owner=repr(self.name))
        return {**own, **resolve_weights(asked, self._of_pairs, owner=repr(self.name))}

    def weights_of(self, asked: Steering) -> dict[str, Weight]:
        """Weights of the composition's own pairs; errors as for `own_weights`."""
        found = self.own_weights(asked.reward_weights, asked.prompt_pairs)
        return {name: found[name] for name in self.weights}

    def settle(self, asked: RewardWeights, prompt_pairs: Mapping[str, PromptPair] | None = None) -> dict[str, Weight]:
        """`own_weights`, and 0 for all other pairs of the backend; errors as there."""
        return {**dict.fromkeys(self.backend.weights, 0.0), **self.own_weights(asked, prompt_pairs)}

    def _part_weights(self, asked: RewardWeights, prompt_pairs: Mapping[str, PromptPair]) -> dict[str, Weight] | None:
        """Weights of a part of the answer, of pairs that are named or, for one weight, of all that are models; None: nothing is
        asked. Errors as for `own_weights`.
        """
        if asked is None:
            return None
        found = self.own_weights(asked, prompt_pairs)
        named = asked if isinstance(asked, Mapping) and not is_schedule(asked) else self._of_pairs
        return {name: found[name] for name in named}

    def check(self, asked: Steering, caller: Caller) -> None:
        """Check what a caller asks for against the policy: the caller's own, else the composition's.

        Raises:
            WeightForbiddenError: a weight is outside, or something that would have the effect of such a weight.
            ApiError: requests bring no prompt pairs here.
            InvalidOptionError: a prompt pair has a name that is taken, or a model that is not there.
            UnknownPairError, InvalidWeightError: as for `own_weights`.
        """
        policy = caller.weight_policy.over(self.weight_policy)
        pairs = asked.prompt_pairs
        if pairs:
            check_prompt_pairs(
                pairs,
                policy,
                owner=self.name,
                are_taken=self.may_bring_prompt_pairs(policy),
                models=self._of_pairs,
                taken={*self.weights, *self.backend.weights},
            )
        weights = self.own_weights(asked.reward_weights, pairs)
        check_weights(weights, self.weights, policy)
        for option, part, own in (
            ("eft_call_weight", asked.call_weight, self.call_weight),
            ("eft_reasoning_weight", asked.reasoning_weight, self.reasoning_weight),
        ):
            if (found := self._part_weights(part, pairs)) is not None:
                check_weights(found, {**self.weights, **(self._part_weights(own, {}) or {})}, policy, option=option)
        if asked.min_plausibility is not None:
            own_share = self.options.min_plausibility
            check_plausibility(asked.min_plausibility, own_share, policy, owner=self.name, models=self._of_pairs)
        if asked.tuned_plausibility is not None:
            own_share = self.options.tuned_plausibility
            check_bound(asked.tuned_plausibility, own_share, policy, owner=self.name, models=self._of_pairs)

    def may_bring_prompt_pairs(self, policy: WeightPolicy) -> bool:
        """Whether requests may, under this policy. They can drown what a pair says, as its weight of 0 would."""
        asked = self.takes_prompt_pairs
        return policy.allows_nothing_of(self._of_pairs) if asked is None else asked

    def allowed(self, caller: Caller) -> dict[str, object]:
        """What a caller may ask for, by pair name: free, fixed, or [low, high]."""
        return described(self.weights, caller.weight_policy.over(self.weight_policy))

    def steering_told(self, caller: Caller) -> dict[str, object]:
        """What `/v1/models` says besides: which pairs are prompts, whether requests may bring some, and what holds unless a request
        says otherwise.
        """
        own: dict[str, RewardWeights] = {"call_weight": self.call_weight, "reasoning_weight": self.reasoning_weight}
        told: dict[str, object] = {
            "prompt_pairs": [*self.prompt_pairs, *self.with_own_weight],
            "takes_prompt_pairs": self.may_bring_prompt_pairs(caller.weight_policy.over(self.weight_policy)),
        }
        for name, asked in own.items():
            if (found := self._part_weights(asked, {})) is not None:
                told[name] = weights_as_json(found)
        return told | {name: share for name in SHARES if (share := getattr(self.options, name))}

    # ---- requests ------------------------------------------------------------------------------------------------------

    def ask(self, request: ChatRequest) -> ChatRequest:
        """A request in the backend's terms."""
        pairs = {**self.prompt_pairs, **request.prompt_pairs}
        call = self.call_weight if request.call_weight is None else request.call_weight
        thought = self.reasoning_weight if request.reasoning_weight is None else request.reasoning_weight
        options = self.options
        if request.composition is not None:
            said = request.composition
            options = options.model_copy(
                update={name: getattr(said, name) for name in SHARES if name in said.model_fields_set}
            )
        return dataclasses.replace(
            request,
            reward_weights=self.settle(request.reward_weights, request.prompt_pairs),
            prompt_pairs=pairs,
            composition=None if options == CompositionOptions() else options,
            call_weight=self._part_weights(call, request.prompt_pairs),
            reasoning_weight=self._part_weights(thought, request.prompt_pairs),
            call_lookahead=self.call_lookahead if request.call_lookahead is None else request.call_lookahead,
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

    def count_side_tokens(self, request: ChatRequest, num_prompt_tokens: int) -> int:
        """Most tokens that prompt pairs read besides the request's own prompt, which has so many."""
        pairs = (*self.prompt_pairs.values(), *request.prompt_pairs.values())
        sides = [side for pair in pairs for side in (pair.positive, pair.negative)]
        return sum(most_side_tokens(side, num_prompt_tokens, self.backend.token_ids) for side in sides)

    def report(self, result: ChatResult) -> dict[str, Any]:
        """A result's metadata, without the pairs of others."""
        told = result.metadata["reward_weights"]
        brought = [pair for pair in told if pair not in self.weights and pair not in self.backend.weights]
        weights = {pair: told[pair] for pair in (*self.weights, *brought)}
        return {**result.metadata, "reward_weights": weights}


@dataclass(frozen=True)
class Chosen:
    """What a request's model name and weights come to."""

    composition: Composition
    model: str
    steering: Steering

    @property
    def reward_weights(self) -> RewardWeights:
        """The weights that are asked for."""
        return self.steering.reward_weights


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

    def choose(
        self, model: str, *, body: Steering | None = None, header: str | None = None, caller: Caller = ANYBODY
    ) -> Chosen:
        """The composition, and the weights by the order: body, header, alias behind the name, the composition's own.

        Raises:
            ApiError: there is no such model, or it takes no prompt pairs.
            InvalidOptionError: the header or the alias cannot be read.
            WeightForbiddenError: the policy does not allow the weights.
            UnknownPairError, InvalidWeightError: as for `Composition.own_weights`.
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
        asked = body or Steering()
        asked = dataclasses.replace(asked, reward_weights=first_given(asked.reward_weights, carried, alias))
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
