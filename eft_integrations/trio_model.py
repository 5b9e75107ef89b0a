"""What the model classes of all hosts have in common: how a trio is named, how long it lives, and how a call becomes a question."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr, field_serializer

from eft_engine import EngineConfig, MemberConfig, PromptOptions, TunedPair, errors
from eft_engine.config import RewardWeights
from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.backends.trio_source import TrioSource, as_member
from eft_integrations.call_options import CallKeywords, CallOptions, asked_composition
from eft_integrations.chat.messages import Message
from eft_integrations.chat.request import ChatRequest
from eft_integrations.durations import FOREVER, keep_alive_s
from eft_integrations.holding import Holding, refuse_to_pickle
from eft_integrations.question import Question
from eft_integrations.sampling import given_sampling, stops_of
from eft_integrations.weights import first_given, parse_alias
from eft_integrations.wire.openai import is_strict, to_response_schema, to_tool_choice, to_tools

NAMES_OF_TRIO = ("base", "tuned", "reference", "pairs", "preset")
GIVEN_FROM_OUTSIDE = ("engine", "backend")
CHOICE = frozenset({*NAMES_OF_TRIO, *GIVEN_FROM_OUTSIDE, "engine_config", "base_url", "served_name", "api_key"})
"""Fields that say what answers. They are settled when a model is made."""

SWITCHES = frozenset(
    {
        "logprobs", "top_logprobs", "timeout", "lenient_tool_calls", "tool_notation", "reasoning", "reasoning_budget",
        "reasoning_tags", "strict", "prompt_options", "speculation", "keep_alive", "call_weight", "call_lookahead",
        "reasoning_weight",
    }
)  # fmt: skip
"""Options of which a call's value goes before the model's even where it is None."""


def _with_options(value: object) -> object:
    """A mapping of a `MemberConfig`'s fields as one. Raises InvalidOptionError for what names no model."""
    return value if value is None or isinstance(value, str) else as_member(value, "a model")


def _as_fields(value: object) -> object:
    """An `EngineConfig` as what was set of it."""
    return value.model_dump(mode="json", exclude_unset=True) if isinstance(value, EngineConfig) else value


Named = Annotated[str | MemberConfig | None, BeforeValidator(_with_options)]


class TrioModel(CallOptions):
    """Fields and behaviour of a host's model class that answers with a trio; mixed into the host's own base class.

    Name the trio by `preset`, by `base` with `tuned` and `reference`, by `base` with `pairs`, or hand over an `engine` or a
    `backend`; or give the `base_url` of a server that vLLM runs (docs/vllm.md). The engine is loaded when it is first needed
    and shared by all models of the process that name the same trio. The fields of `CallOptions` are keywords of a call too.

    A model that names its trio may be pickled; where it comes back, it shares the engine of that process. One that was given an
    `engine` or a `backend` refuses, and never closes what it was given. Copies, deep ones too, share the engine.
    """

    base: Named = Field(
        default=None, description="the large model: hub id, folder or .gguf file, or a MemberConfig or its fields"
    )
    tuned: Named = Field(
        default=None, description="the small model after fine-tuning, or an adapter on the reference; written as base"
    )
    reference: Named = Field(default=None, description="the small model before fine-tuning; written as base")
    pairs: dict[str, object] | None = Field(default=None, description="pairs by name: (tuned, reference)")
    preset: str | None = Field(default=None, description="a trio that ships with the package")
    engine_config: Annotated[dict[str, object] | EngineConfig, BeforeValidator(_as_fields)] = Field(
        default_factory=dict,
        union_mode="left_to_right",
        description="an EngineConfig or its fields; kept as those that were set",
    )
    base_url: str | None = Field(default=None, description='a server that holds the trio: "http://host:8000/v1"')
    served_name: str | None = Field(default=None, description="its name on that server; None: the server's first")
    api_key: SecretStr | None = Field(
        default=None, exclude=True, description="what the server of base_url wants to be sent; no use otherwise"
    )
    engine: Any = Field(default=None, exclude=True, repr=False, description="an engine that is already loaded")
    backend: Any = Field(default=None, exclude=True, repr=False, description="any ChatBackend")
    fixed_weights: bool = Field(
        default=False,
        description="blocks and configs do not reach this model; only weights given with a call go before",
    )
    validate_model_on_init: bool = Field(
        default=False,
        description="look for the named models at once, without loading them, and raise what is wrong with them",
    )

    _held: Holding = PrivateAttr()

    @field_serializer("base", "tuned", "reference", "pairs")
    def _as_given(self, value: object) -> object:
        """What was set of a `MemberConfig`: a tuned adapter has everything else from its reference."""
        match value:
            case MemberConfig() | TunedPair():
                return value.model_dump(exclude_unset=True)
            case Mapping():
                return {name: self._as_given(inner) for name, inner in value.items()}
            case list() | tuple():
                return [self._as_given(inner) for inner in value]
        return value

    def model_post_init(self, context: object, /) -> None:
        """Choose the backend: before validators of the host's class, which may ask it."""
        super().model_post_init(context)
        self._held = self._chosen()
        if self.validate_model_on_init:
            self._held.check()

    def _chosen(self) -> Holding:
        """What answers, by the fields that say so.

        Raises:
            InvalidOptionError: they contradict each other or are incomplete.
        """
        named = any(getattr(self, name) for name in NAMES_OF_TRIO)
        if sum((self.engine is not None, self.backend is not None, self.base_url is not None, named)) > 1:
            raise errors.InvalidOptionError(
                "give one of: engine, backend, base_url, or the names of a trio (preset, base, tuned, reference, pairs)"
            )
        if self.base_url is None and self.served_name is not None:
            raise errors.InvalidOptionError(
                "served_name belongs to base_url, the address of a server", option="served_name", value=self.served_name
            )
        if self._keep_alive_s != FOREVER and (self.engine is not None or self.base_url is not None):
            raise errors.InvalidOptionError(
                f"keep_alive={self.keep_alive!r} lets go of an engine that this model loads by name; an engine that is given, or a "
                "server's, is somebody else's to close",
                option="keep_alive",
                value=self.keep_alive,
            )
        if self.backend is not None:
            return Holding(self.backend, None)
        if self.engine is not None:
            return Holding(backend_of(self.engine), None)
        if self.base_url is not None:
            key = None if self.api_key is None else self.api_key.get_secret_value()
            return Holding.of({"base_url": self.base_url, "served_name": self.served_name, "api_key": key})
        names = {name: getattr(self, name) for name in NAMES_OF_TRIO}
        return Holding.of(TrioSource.of(**names, engine_config=self.engine_config))

    @property
    def _keep_alive_s(self) -> float:
        return FOREVER if self.keep_alive is None else keep_alive_s(self.keep_alive)

    @property
    def _backend(self) -> ChatBackend:
        """What answers. Its `context_len` is cheap: before the engine is loaded, it is worked out from the models' configurations.

        Raises:
            EngineClosedError: the model was closed.
        """
        return self._held.opened()

    @property
    def model_name(self) -> str:
        """What reports and traces call the model."""
        return self._held.model_name

    @property
    def _shown_name(self) -> str:
        """The name, or the address of a server that was not asked for it yet, and is not asked for a trace."""
        return self.model_name if self.base_url is None or self.served_name or self._is_loaded else self.base_url

    # ---- loading, keeping and closing ----------------------------------------------------------------------------------

    def load(self) -> None:
        """Load the engine now instead of when it is first needed. In a coroutine: `await asyncio.to_thread(model.load)`."""
        self._held.load()

    @property
    def _is_loaded(self) -> bool:
        return self._held.is_loaded

    async def _aload(self) -> None:
        if not self._is_loaded:
            await asyncio.to_thread(self.load)

    def close(self) -> None:
        """Nothing more can be asked of this model and its copies. An engine that was loaded by name is unloaded, at once or when
        the last request that runs is over; another model that names the same trio loads it again when it needs it. An engine or a
        backend that was given stays open.
        """
        self._held.close()

    async def aclose(self) -> None:
        """See `close`; without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # ---- copies --------------------------------------------------------------------------------------------------------

    def with_weights(self, reward_weights: RewardWeights, *, fixed: bool = False) -> Self:
        """A copy with other weights that shares the engine; it keeps them through tools, agents and engines of the host.

        Args:
            reward_weights: a number or a schedule for every pair, or weights by pair name.
            fixed: blocks and configs do not reach the copy; only weights that are given with a call go before.
        """
        return self.model_copy(update={"reward_weights": reward_weights, "fixed_weights": fixed})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """See `BaseModel.model_copy`. A copy that names another trio has that trio's engine; every other one shares this one's."""
        copied = super().model_copy(update=update, deep=deep)
        if not CHOICE.isdisjoint(update or ()):
            copied._held = copied._chosen()
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        for name in GIVEN_FROM_OUTSIDE:  # networks are shared, never copied
            memo[id(getattr(self, name))] = getattr(self, name)
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        for name in GIVEN_FROM_OUTSIDE:
            if getattr(self, name) is not None:
                refuse_to_pickle(f"{name}=")
        return super().__getstate__()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in CHOICE:
            raise errors.InvalidOptionError(
                f"{name} says what answers, and that is settled when a model is made; make another one, or "
                f"model_copy(update={{{name!r}: ...}})",
                option=name,
                value=value,
            )
        super().__setattr__(name, value)

    # ---- asking --------------------------------------------------------------------------------------------------------

    def token_ids(self, text: str) -> list[int]:
        """The text as tokens of the base's tokenizer."""
        return self._backend.token_ids(text)

    def _ask(
        self, messages: Sequence[Message], keywords: Mapping[str, object], *, prompt: str | None = None
    ) -> Question:
        """The question of one call: its keywords go before the model's fields.

        Args:
            messages: the conversation.
            keywords: those of `CallKeywords`; `reward_weights` settled (see `weights.settle`). Stop strings join the model's.
            prompt: a raw text in place of the messages.

        Raises:
            InvalidOptionError: an unknown keyword, or a value that cannot be used.
            ModelNotFoundError: `model` names another model.
        """
        call = CallKeywords.read(keywords)
        chosen = call.model_copy(update={name: getattr(self, name) for name in SWITCHES - call.model_fields_set})
        sampling = {**given_sampling(self), **given_sampling(call), "stop": [*stops_of(self), *stops_of(call)]}
        if call.max_tokens is None and call.max_completion_tokens is not None:
            sampling["max_tokens"] = call.max_completion_tokens
        if chosen.logprobs:
            sampling["logprobs"] = chosen.top_logprobs or 0
        tools = to_tools(call.tools or (), strict=chosen.strict)
        choice, tools = to_tool_choice(call.tool_choice, tools, parallel=call.parallel_tool_calls is not False)
        request = ChatRequest(
            messages=tuple(messages),
            tools=tools,
            tool_choice=choice,
            response_schema=to_response_schema(call.response_format),
            strict_response=is_strict(call.response_format) or bool(chosen.strict),
            reasoning=chosen.reasoning,
            reasoning_budget=chosen.reasoning_budget,
            reasoning_tags=chosen.reasoning_tags,
            sampling=sampling,
            reward_weights=first_given(call.reward_weights, self._weights_of_alias(call.model), self.reward_weights),
            call_weight=chosen.call_weight,
            call_lookahead=chosen.call_lookahead,
            reasoning_weight=chosen.reasoning_weight,
            template_variables={**(self.chat_template_kwargs or {}), **(call.chat_template_kwargs or {})},
            documents=tuple(call.documents or ()),
            prompt=prompt,
            lenient_tool_calls=chosen.lenient_tool_calls,
            tool_notation=chosen.tool_notation,
            prompt_options=chosen.prompt_options or PromptOptions(),
            composition=asked_composition(self, call),
            speculation=chosen.speculation,
            keep_alive_s=FOREVER if chosen.keep_alive is None else keep_alive_s(chosen.keep_alive),
        )
        return Question(self._backend, request, call.model, chosen.timeout)

    def _ask_text(self, text: str, keywords: Mapping[str, object], formatted: bool) -> Question:
        """A text is what the user says; one that is formatted already is continued as it stands."""
        if formatted:
            return self._ask((), keywords, prompt=text)
        return self._ask((Message("user", text),), keywords)

    def _weights_of_alias(self, model: str | None) -> dict[str, float] | None:
        """Weights out of `model="<name>@<pair>=<weight>,..."`, for callers that can set nothing but a model's name."""
        if model is None or model == self.model_name:
            return None
        try:
            name, weights = parse_alias(model)
        except ValueError as error:
            raise errors.InvalidOptionError(f"model: {error}", option="model", value=model) from None
        if name != self.model_name:
            raise errors.ModelNotFoundError(
                f"this model is {self.model_name!r}, not {name!r}; make another {type(self).__name__} for it, or append "
                f"weights to this name: {self.model_name}@pair=0.5"
            )
        return weights
