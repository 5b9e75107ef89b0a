"""What the model classes of all hosts have in common: how a trio is named, what a call may set, and how both become a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, Field, PrivateAttr, SecretStr

from eft_engine import errors
from eft_integrations.backends.pool import backend_of, shared_backend
from eft_integrations.backends.protocol import ChatBackend
from eft_integrations.backends.vllm_server import remote_backend
from eft_integrations.chat.messages import Message, Tool
from eft_integrations.chat.request import ChatDelta, ChatRequest, ToolChoice
from eft_integrations.sampling import SAMPLING_FIELDS
from eft_integrations.weights import first_given, parse_alias

RewardWeights = float | dict[str, float]

NAMES_OF_TRIO = ("base", "tuned", "reference", "pairs", "preset")

FIELDS_OF_SAMPLING = (
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "logit_bias", "seed", "stop_token_ids", "ignore_eos",
)  # fmt: skip
"""Fields of the model, and keywords of a call, that `SamplingParams` has under the same name."""


class TrioModel(BaseModel):
    """Fields and behaviour of a host's model class that answers with a trio; mixed into the host's own base class.

    Name the trio by `preset`, by `base` with `tuned` and `reference`, by `base` with `pairs`, or hand over an `engine` or a
    `backend`; or give the `base_url` of a server that vLLM runs (docs/vllm.md). The engine is loaded when it is first needed
    and shared by all models of the process that name the same trio.
    """

    base: str | None = Field(default=None, description="the large model: hub id, folder or .gguf file")
    tuned: str | None = Field(
        default=None, description="the small model after fine-tuning, or an adapter on the reference"
    )
    reference: str | None = Field(default=None, description="the small model before fine-tuning")
    pairs: dict[str, Any] | None = Field(default=None, description="pairs by name: (tuned, reference)")
    preset: str | None = Field(default=None, description="a trio that ships with the package")
    engine_config: dict[str, Any] = Field(default_factory=dict, description="fields of EngineConfig")
    base_url: str | None = Field(default=None, description='a server that holds the trio: "http://host:8000/v1"')
    served_name: str | None = Field(default=None, description="its name on that server; None: the server's first")
    api_key: SecretStr | None = Field(
        default=None, exclude=True, description="what the server of base_url wants to be sent; no use otherwise"
    )
    engine: Any = Field(default=None, exclude=True, repr=False, description="an engine that is already loaded")
    backend: Any = Field(default=None, exclude=True, repr=False, description="any ChatBackend")

    reward_weights: RewardWeights | None = Field(
        default=None, description="for every pair, or by pair; None: their own"
    )
    max_tokens: int | None = Field(default=None, description="most tokens to generate")
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: list[str] | None = Field(default=None, description="strings that end the text")
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    logprobs: bool | None = Field(default=None, description="report log-probabilities of the tokens")
    top_logprobs: int | None = Field(default=None, description="and of this many alternatives")
    timeout: float | None = Field(default=None, description="seconds until a request is cancelled")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="variables of the chat template")

    _backend: ChatBackend = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
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

    def with_weights(self, reward_weights: RewardWeights) -> Self:
        """A copy with other weights that shares the engine; it keeps them through tools, agents and engines of the host."""
        return self.model_copy(update={"reward_weights": reward_weights})

    def _ask(
        self,
        messages: Sequence[Message],
        keywords: Mapping[str, Any],
        *,
        tools: Sequence[Tool] = (),
        response_schema: Mapping[str, Any] | None = None,
        prompt: str | None = None,
    ) -> ChatRequest:
        """The request of one call: its keywords before the model's fields.

        Args:
            messages: the conversation.
            keywords: `reward_weights` (settled: see `weights.settle`), sampling fields under the names of `SamplingParams`,
                `max_completion_tokens`, `stop` (joins the model's), `logprobs` and `top_logprobs`, `tool_choice`,
                `parallel_tool_calls`, `documents`, `chat_template_kwargs`, and `model`, which may carry weights.
            tools: what may be called.
            response_schema: makes the answer a JSON value of that schema.
            prompt: a raw text in place of the messages.

        Raises:
            InvalidOptionError: an unknown keyword.
            ValueError: a value that cannot be used.
            ModelNotFoundError: `model` names another model.
        """
        options = dict(keywords)
        carried = (
            options.pop("reward_weights", None),
            self._weights_of_alias(options.pop("model", None)),
            self.reward_weights,
        )
        choice, parallel = options.pop("tool_choice", None), options.pop("parallel_tool_calls", None)
        sampling = {name: value for name in FIELDS_OF_SAMPLING if (value := getattr(self, name)) is not None}
        if "max_completion_tokens" in options:
            options.setdefault("max_tokens", options.pop("max_completion_tokens"))
        logprobs, top = options.pop("logprobs", self.logprobs), options.pop("top_logprobs", self.top_logprobs)
        if logprobs:
            sampling["logprobs"] = top or 0
        template_variables = {**self.chat_template_kwargs, **(options.pop("chat_template_kwargs", None) or {})}
        documents = tuple(options.pop("documents", None) or ())
        stop = options.pop("stop", None) or ()
        stops = [*(self.stop or ()), *((stop,) if isinstance(stop, str) else stop)]
        if unknown := sorted(set(options) - set(FIELDS_OF_SAMPLING)):
            raise errors.InvalidOptionError(
                f"unknown keyword {', '.join(unknown)}; a call takes reward_weights, {', '.join(sorted(SAMPLING_FIELDS))}",
                option=unknown[0],
            )
        return ChatRequest(
            messages=tuple(messages),
            tools=tuple(tools),
            tool_choice=ToolChoice.parse(choice, tools, parallel=parallel is not False),
            response_schema=response_schema,
            sampling={
                **sampling,
                **{key: value for key, value in options.items() if value is not None},
                "stop": stops,
            },
            reward_weights=first_given(*carried),
            template_variables=template_variables,
            documents=documents,
            prompt=prompt,
        )

    def _weights_of_alias(self, model: str | None) -> dict[str, float] | None:
        """Weights out of `model="<name>@<pair>=<weight>,..."`, for callers that can set nothing but a model's name."""
        name, weights = parse_alias(model or self.model_name)
        if name != self.model_name:
            raise errors.ModelNotFoundError(
                f"this model is {self.model_name!r}, not {name!r}; make another {type(self).__name__} for it, or append "
                f"weights to this name: {self.model_name}@pair=0.5"
            )
        return weights


# ---- answers in time -----------------------------------------------------------------------------------------------------


def stream_within(backend: ChatBackend, request: ChatRequest, timeout: float | None) -> Iterator[ChatDelta]:
    """The answer in pieces; the request is submitted now. After `timeout` seconds it is cancelled.

    Raises:
        TimeoutError: while the pieces are read.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    return _until(deadline, backend.stream(request), timeout)


def _until(deadline: float | None, deltas: Iterator[ChatDelta], timeout: float | None) -> Iterator[ChatDelta]:
    try:
        for delta in deltas:
            yield delta
            if deadline is not None and time.monotonic() > deadline and delta.result is None:
                raise _late(timeout)
    finally:
        deltas.close()  # type: ignore[attr-defined]


async def astream_within(backend: ChatBackend, request: ChatRequest, timeout: float | None) -> AsyncIterator[ChatDelta]:
    """`stream_within` without blocking the event loop; the clock runs from the first time that a piece is asked for."""
    deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
    deltas = backend.astream(request)
    try:
        while True:
            async with asyncio.timeout_at(deadline):
                delta = await anext(deltas, None)
            if delta is None:
                return
            yield delta
    except TimeoutError as error:
        raise _late(timeout) from error
    finally:
        await deltas.aclose()  # type: ignore[attr-defined]


def _late(timeout: float | None) -> TimeoutError:
    return TimeoutError(f"no whole answer within {timeout} s; the request was cancelled")
