"""What the model classes of all hosts have in common: how a trio is named, and how a call becomes a question."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field, PrivateAttr, SecretStr

from eft_engine import errors
from eft_engine.config import RewardWeights
from eft_integrations.backends.pool import backend_of, shared_backend
from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.backends.remote import remote_backend
from eft_integrations.call_options import CallKeywords, CallOptions
from eft_integrations.chat.messages import Message
from eft_integrations.chat.request import ChatRequest
from eft_integrations.question import Question
from eft_integrations.sampling import given_sampling, stops_of
from eft_integrations.weights import first_given, parse_alias
from eft_integrations.wire.openai import is_strict, to_response_schema, to_tool_choice, to_tools

NAMES_OF_TRIO = ("base", "tuned", "reference", "pairs", "preset")

SWITCHES = frozenset(
    {
        "logprobs", "top_logprobs", "timeout", "lenient_tool_calls", "tool_notation", "reasoning", "reasoning_budget",
        "reasoning_tags", "strict",
    }
)  # fmt: skip
"""Options of which a call's value goes before the model's even where it is None."""


class TrioModel(CallOptions):
    """Fields and behaviour of a host's model class that answers with a trio; mixed into the host's own base class.

    Name the trio by `preset`, by `base` with `tuned` and `reference`, by `base` with `pairs`, or hand over an `engine` or a
    `backend`; or give the `base_url` of a server that vLLM runs (docs/vllm.md). The engine is loaded when it is first needed
    and shared by all models of the process that name the same trio. The fields of `CallOptions` are keywords of a call too.
    """

    base: str | None = Field(default=None, description="the large model: hub id, folder or .gguf file")
    tuned: str | None = Field(
        default=None, description="the small model after fine-tuning, or an adapter on the reference"
    )
    reference: str | None = Field(default=None, description="the small model before fine-tuning")
    pairs: dict[str, object] | None = Field(default=None, description="pairs by name: (tuned, reference)")
    preset: str | None = Field(default=None, description="a trio that ships with the package")
    engine_config: dict[str, object] = Field(default_factory=dict, description="fields of EngineConfig")
    base_url: str | None = Field(default=None, description='a server that holds the trio: "http://host:8000/v1"')
    served_name: str | None = Field(default=None, description="its name on that server; None: the server's first")
    api_key: SecretStr | None = Field(
        default=None, exclude=True, description="what the server of base_url wants to be sent; no use otherwise"
    )
    engine: Any = Field(default=None, exclude=True, repr=False, description="an engine that is already loaded")
    backend: Any = Field(default=None, exclude=True, repr=False, description="any ChatBackend")

    _backend: ChatBackend = PrivateAttr()

    def model_post_init(self, context: object, /) -> None:
        """Choose the backend: before validators of the host's class, which may ask it."""
        super().model_post_init(context)
        named = any(getattr(self, name) for name in NAMES_OF_TRIO)
        if sum((self.engine is not None, self.backend is not None, self.base_url is not None, named)) > 1:
            raise ValueError(
                "give one of: engine, backend, base_url, or the names of a trio (preset, base, tuned, reference, pairs)"
            )
        if self.base_url is None and self.served_name is not None:
            raise ValueError("served_name belongs to base_url, the address of a server")
        if self.backend is not None:
            self._backend = self.backend
        elif self.engine is not None:
            self._backend = backend_of(self.engine)
        elif self.base_url is not None:
            key = None if self.api_key is None else self.api_key.get_secret_value()
            self._backend = remote_backend(self.base_url, served_name=self.served_name, api_key=key)
        else:
            names = {name: getattr(self, name) for name in NAMES_OF_TRIO}
            self._backend = shared_backend(**names, engine_config=self.engine_config)

    @property
    def model_name(self) -> str:
        """What reports and traces call the model."""
        return self._backend.model_name

    def load(self) -> None:
        """Load the engine now instead of when it is first needed. In a coroutine: `await asyncio.to_thread(model.load)`."""
        _ = self._backend.context_len

    @property
    def _is_loaded(self) -> bool:
        return bool(getattr(self._backend, "is_loaded", True))

    async def _aload(self) -> None:
        if not self._is_loaded:
            await asyncio.to_thread(self.load)

    def token_ids(self, text: str) -> list[int]:
        """The text as tokens of the base's tokenizer."""
        return self._backend.token_ids(text)

    def with_weights(self, reward_weights: RewardWeights) -> Self:
        """A copy with other weights that shares the engine; it keeps them through tools, agents and engines of the host."""
        return self.model_copy(update={"reward_weights": reward_weights})

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
            template_variables={**(self.chat_template_kwargs or {}), **(call.chat_template_kwargs or {})},
            documents=tuple(call.documents or ()),
            prompt=prompt,
            lenient_tool_calls=chosen.lenient_tool_calls,
            tool_notation=chosen.tool_notation,
        )
        return Question(self._backend, request, call.model or self.model_name, chosen.timeout)

    def _ask_text(self, text: str, keywords: Mapping[str, object], formatted: bool) -> Question:
        """A text is what the user says; one that is formatted already is continued as it stands."""
        if formatted:
            return self._ask((), keywords, prompt=text)
        return self._ask((Message("user", text),), keywords)

    def _weights_of_alias(self, model: str | None) -> dict[str, float] | None:
        """Weights out of `model="<name>@<pair>=<weight>,..."`, for callers that can set nothing but a model's name."""
        name, weights = parse_alias(model or self.model_name)
        if name != self.model_name:
            raise errors.ModelNotFoundError(
                f"this model is {self.model_name!r}, not {name!r}; make another {type(self).__name__} for it, or append "
                f"weights to this name: {self.model_name}@pair=0.5"
            )
        return weights
