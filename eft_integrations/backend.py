"""The one seam between adapters and whatever answers: a `ChatBackend`.

`EngineBackend` answers with an engine, which it loads when it is first needed; `shared_backend` gives everyone in a process the
same engine for the same trio. Others that answer: `remote.RemoteBackend` over HTTP, `scripted.ScriptedBackend` in tests.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

from eft_engine import errors
from eft_engine.config import (
    ChatTemplate,
    EngineConfig,
    JsonSchema,
    Lark,
    MemberConfig,
    PromptOptions,
    RewardWeights,
    SamplingParams,
    SpeculationOptions,
    TunedPair,
    resolve_weights,
)
from eft_engine.errors import InvalidOptionError
from eft_engine.outputs import (
    EngineStats,
    GenerationDelta,
    RequestMetrics,
    RequestOutput,
    TokenLogprobs,
    TopToken,
    TrioReport,
    Usage,
)
from eft_integrations.messages import InvalidToolCall, Message, Tool, ToolCall, close_schema, merge_turns
from eft_integrations.tool_calls import (
    CallDelta,
    Piece,
    ToolCallReader,
    ToolChoice,
    announce,
    call_grammar,
    knows_tools,
    notation_of,
)

__all__ = [
    "DEFAULT_MAX_TOKENS",
    "SAMPLING_FIELDS",
    "AnswerReader",
    "Asked",
    "ChatBackend",
    "ChatDelta",
    "ChatRequest",
    "ChatResult",
    "EngineBackend",
    "EngineConfig",
    "EngineStats",
    "GenerationDelta",
    "JsonSchema",
    "Lark",
    "MemberConfig",
    "RequestMetrics",
    "RequestOutput",
    "RewardWeights",
    "SamplingParams",
    "SpeculationOptions",
    "TokenLogprobs",
    "TopToken",
    "TrioReport",
    "TunedPair",
    "Usage",
    "backend_of",
    "errors",
    "last_result",
    "report_on_trio",
    "resolve_weights",
    "shared_backend",
]

SAMPLING_FIELDS = frozenset(SamplingParams.model_fields) - {"grammar"}
"""Names that `ChatRequest.sampling` may hold."""
DEFAULT_MAX_TOKENS = int(SamplingParams.model_fields["max_tokens"].default)
"""Most tokens of an answer to a request that does not say."""


@dataclass(frozen=True)
class ChatRequest:
    """One question to a backend.

    `response_schema` makes the answer a JSON value of that schema. `sampling` holds fields of `SamplingParams`. A `prompt` is a
    raw text to continue; it stands in place of the messages, and tools have no meaning then. `chat_template` (Jinja) replaces the
    backend's own.
    """

    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    response_schema: Mapping[str, Any] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    reward_weights: RewardWeights = None
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    documents: tuple[Mapping[str, str], ...] = ()
    prompt: str | None = None
    chat_template: str | None = None


@dataclass(frozen=True)
class ChatResult:
    """The whole answer. `metadata` is plain JSON: the weights in effect and what the request cost."""

    content: str
    tool_calls: tuple[ToolCall, ...]
    invalid_tool_calls: tuple[InvalidToolCall, ...]
    finish_reason: Literal["stop", "length", "tool_calls"]
    usage: Usage
    logprobs: tuple[TokenLogprobs, ...] | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class ChatDelta:
    """A piece of an answer: text, a piece of a tool call, or, last, the whole `result`.

    `logprobs` are those of the tokens that came with it, where they were asked for (a piece may have nothing else).
    """

    text: str = ""
    call: CallDelta | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    result: ChatResult | None = None


class ChatBackend(Protocol):
    """What adapters need of whatever answers. Errors are those of `eft_engine.errors`."""

    @property
    def model_name(self) -> str:
        """What reports and logs call the model."""

    @property
    def identity(self) -> str:
        """Differs between any two backends that may answer differently; caches rest on it."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The pairs' own weights."""

    @property
    def context_len(self) -> int:
        """Most tokens of prompt and answer together."""

    def token_ids(self, text: str) -> list[int]:
        """The text as tokens."""

    def count_prompt_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt as it would be rendered."""

    def stats(self) -> EngineStats:
        """What runs and waits now, and totals."""

    def chat(self, request: ChatRequest) -> ChatResult:
        """The whole answer."""

    def stream(self, request: ChatRequest) -> Iterator[ChatDelta]:
        """The answer in pieces; closing the iterator cancels the request."""

    async def achat(self, request: ChatRequest) -> ChatResult:
        """`chat` without blocking the event loop."""

    def astream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        """`stream` without blocking the event loop."""


class EngineBackend:
    """Answers with an engine.

    Args:
        load: makes the engine; called once, when it is first needed. It is not closed by this object.
        model_name: what reports and logs call the model.
        identity: see `ChatBackend`; made up if it is not given.
    """

    def __init__(self, load: Callable[[], Any], *, model_name: str, identity: str | None = None) -> None:
        self.identity = identity or uuid.uuid4().hex
        self._load = load
        self._name = model_name
        self._engine: Any = None
        self._lock = threading.Lock()

    @property
    def engine(self) -> Any:
        """The engine, loaded now if it is not yet."""
        if self._engine is None:
            with self._lock:
                if self._engine is None:
                    self._engine = self._load()
        return self._engine

    @property
    def is_loaded(self) -> bool:
        """Whether the engine is there already."""
        return self._engine is not None

    @property
    def model_name(self) -> str:
        """See `ChatBackend`."""
        return self._name

    @property
    def weights(self) -> Mapping[str, float]:
        """See `ChatBackend`."""
        weights: Mapping[str, float] = self.engine.weights
        return weights

    @property
    def context_len(self) -> int:
        """See `ChatBackend`."""
        return int(self.engine.context_len)

    def token_ids(self, text: str) -> list[int]:
        """See `ChatBackend`."""
        return list(self.engine.token_ids(text))

    def count_prompt_tokens(self, request: ChatRequest) -> int:
        """See `ChatBackend`."""
        asked = Asked.of_engine(request, self.engine)
        return int(self.engine.count_prompt_tokens(asked.prompt, prompt_options=asked.options["prompt_options"]))

    def template_of(self, pair: str) -> str | None:
        """The chat template of a pair's tuned model, which its own requests are rendered with."""
        template: str | None = self.engine.chat_template_of(pair)
        return template

    def stats(self) -> EngineStats:
        """See `ChatBackend`."""
        stats: EngineStats = self.engine.stats()
        return stats

    def close(self) -> None:
        """Close the engine, if it was loaded; whoever shares it loses it too."""
        if self._engine is not None:
            self._engine.close()

    def chat(self, request: ChatRequest) -> ChatResult:
        """See `ChatBackend`."""
        return last_result([delta.result for delta in self.stream(request)])

    def stream(self, request: ChatRequest) -> Iterator[ChatDelta]:
        """See `ChatBackend`. The request is checked and submitted now, not when the first piece is asked for."""
        asked = Asked.of_engine(request, self.engine)
        deltas = self.engine.stream(asked.prompt, **asked.options)
        return _read(deltas, AnswerReader(asked))

    async def achat(self, request: ChatRequest) -> ChatResult:
        """See `ChatBackend`."""
        return last_result([delta.result async for delta in self.astream(request)])

    async def astream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        """See `ChatBackend`."""
        if self._engine is None:
            await asyncio.to_thread(lambda: self.engine)
        asked = Asked.of_engine(request, self.engine)
        reader = AnswerReader(asked)
        deltas = self.engine.astream(asked.prompt, **asked.options)
        try:
            async for delta in deltas:
                for piece in reader.feed(delta):
                    yield piece
        finally:
            await deltas.aclose()


def _read(deltas: Any, reader: AnswerReader) -> Iterator[ChatDelta]:
    try:
        for delta in deltas:
            yield from reader.feed(delta)
    finally:
        deltas.close()


def last_result(results: Sequence[ChatResult | None]) -> ChatResult:
    """The result, which the last piece of a stream carries."""
    result = results[-1]
    assert result is not None, "the last piece of a stream carries the result"
    return result


@dataclass(frozen=True)
class Asked:
    """A request in the engine's terms.

    `prompt` is a text or the messages as mappings, `options` are the engine's keywords; `reads_calls` says whether the answer
    may hold calls, which are written as `template` shows them.
    """

    prompt: str | list[dict[str, Any]]
    options: dict[str, Any]
    reads_calls: bool
    template: str | None

    @classmethod
    def of_engine(cls, request: ChatRequest, engine: Any) -> Asked:
        """A request to an engine."""
        added = {token.content for token in engine.tokenizer.added_tokens_decoder.values()}
        return cls.of(request, chat_template=engine.chat_template, added_tokens=added)

    @classmethod
    def of(cls, request: ChatRequest, *, chat_template: str | None, added_tokens: set[str]) -> Asked:
        """A request to a model with this chat template, whose tokenizer writes `added_tokens` as one token each.

        Raises:
            InvalidOptionError: a sampling field is unknown or out of range.
        """
        if request.prompt is not None:
            return cls._of_text(request, request.prompt)
        template: str | None = request.chat_template or chat_template
        tools = request.tools if request.tool_choice.mode != "none" else ()
        variables: dict[str, Any] = dict(request.template_variables)
        messages: Sequence[Message] = merge_turns(request.messages)
        if knows_tools(template):
            if tools:
                variables["tools"] = [tool.as_openai() for tool in tools]
        else:
            messages = merge_turns(announce(messages, tools, notation_of(template)))
        if request.documents:
            messages = _with_documents(messages, request.documents, template, variables)
        sampling = SamplingParams(**request.sampling, grammar=_grammar(request, tools, added_tokens, template))
        return cls(
            prompt=[_as_mapping(message) for message in messages],
            options={
                "sampling": sampling,
                "reward_weights": request.reward_weights,
                "prompt_options": PromptOptions(
                    chat_template=ChatTemplate(jinja=request.chat_template), template_variables=variables
                ),
            },
            reads_calls=bool(tools),
            template=template,
        )

    @classmethod
    def _of_text(cls, request: ChatRequest, prompt: str) -> Asked:
        """A raw text: no template, no tools."""
        schema = request.response_schema
        grammar = None if schema is None else JsonSchema(json_schema=close_schema(schema))
        options = {
            "sampling": SamplingParams(**request.sampling, grammar=grammar),
            "reward_weights": request.reward_weights,
            "prompt_options": PromptOptions(),
        }
        return cls(prompt=prompt, options=options, reads_calls=False, template=None)


def _with_documents(
    messages: Sequence[Message], documents: Sequence[Mapping[str, str]], template: str | None, variables: dict[str, Any]
) -> Sequence[Message]:
    """Documents go to templates that render them, else in front of the last user turn."""
    if "documents" in (template or ""):
        variables["documents"] = [dict(document) for document in documents]
        return messages
    listed = "\n\n".join("\n".join(document.values()) for document in documents)
    last = max((index for index, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        return [*messages, Message("user", listed)]
    question = messages[last]
    return [
        *messages[:last],
        dataclasses.replace(question, content=f"{listed}\n\n{question.content}"),
        *messages[last + 1 :],
    ]


def _grammar(
    request: ChatRequest, tools: Sequence[Tool], added: set[str], template: str | None
) -> JsonSchema | Lark | None:
    calls = call_grammar(
        tools, request.tool_choice, notation_of(template), added, response_schema=request.response_schema
    )
    if calls is not None:
        return Lark(grammar=calls)
    if request.response_schema is None:
        return None
    return JsonSchema(json_schema=close_schema(request.response_schema))


def _as_mapping(message: Message) -> dict[str, Any]:
    """OpenAI's form, with arguments as an object where they are one (chat templates print them)."""
    mapping: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        mapping["name"] = message.name
    if message.tool_call_id is not None:
        mapping["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        mapping["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": _object(call)}}
            for call in message.tool_calls
        ]
    return mapping


def _object(call: ToolCall) -> Any:
    try:
        return json.loads(call.arguments)
    except ValueError:
        return call.arguments


class AnswerReader:
    """Turns an engine's deltas into a backend's, and gathers the result."""

    def __init__(self, asked: Asked) -> None:
        self._reader = ToolCallReader(notation_of(asked.template)) if asked.reads_calls else None
        self._text: list[str] = []
        self._calls: list[ToolCall] = []
        self._invalid: list[InvalidToolCall] = []

    def feed(self, delta: GenerationDelta) -> Iterator[ChatDelta]:
        """The pieces of one delta; the last one's end with the result."""
        logprobs = delta.logprobs
        for piece in self._read(delta.text_delta, ends=delta.output is not None):
            yield dataclasses.replace(piece, logprobs=logprobs) if logprobs else piece
            logprobs = ()
        if logprobs:  # the tokens' text is held back
            yield ChatDelta(logprobs=logprobs)
        if delta.output is not None:
            yield ChatDelta(result=self._result(delta.output))

    def _read(self, text: str, *, ends: bool) -> Iterator[ChatDelta]:
        pieces: list[Piece] = [text] if text else []
        if self._reader is not None:
            pieces = [*self._reader.feed(text), *(self._reader.finish() if ends else ())]
        for piece in pieces:
            match piece:
                case str():
                    self._text.append(piece)
                    yield ChatDelta(text=piece)
                case CallDelta():
                    yield ChatDelta(call=piece)
                case ToolCall():
                    self._calls.append(piece)
                case InvalidToolCall():
                    self._invalid.append(piece)

    def _result(self, output: RequestOutput) -> ChatResult:
        finish_reason: Literal["stop", "length", "tool_calls"] = output.finish_reason
        if self._calls and finish_reason == "stop":
            finish_reason = "tool_calls"
        metrics = output.metrics
        return ChatResult(
            content="".join(self._text),
            tool_calls=tuple(self._calls),
            invalid_tool_calls=tuple(self._invalid),
            finish_reason=finish_reason,
            usage=output.usage,
            logprobs=output.logprobs,
            metadata={
                "request_id": output.request_id,
                "reward_weights": dict(output.reward_weights),
                "queue_s": metrics.queue_s,
                "total_s": metrics.total_s,
                "ttft_s": metrics.ttft_s,
                "tpot_s": metrics.tpot_s,
                "num_forwards": dict(metrics.num_forwards),
                "acceptance_rate": metrics.acceptance_rate,
                "mean_acceptance_length": metrics.mean_acceptance_length,
            },
        )


# ---- shared engines ------------------------------------------------------------------------------------------------------

_SHARED: dict[str, EngineBackend] = {}
_OF_ENGINES: WeakKeyDictionary[Any, EngineBackend] = WeakKeyDictionary()
_SHARED_LOCK = threading.Lock()


def backend_of(engine: Any) -> EngineBackend:
    """The backend of an engine that is already loaded, one and the same for all who ask."""
    with _SHARED_LOCK:
        if engine not in _OF_ENGINES:
            reference = weakref.ref(engine)
            _OF_ENGINES[engine] = EngineBackend(lambda: _alive(reference), model_name="eft")
        return _OF_ENGINES[engine]


def _alive(reference: weakref.ref[Any]) -> Any:
    engine = reference()
    assert engine is not None, "whoever asks holds the engine"
    return engine


def shared_backend(
    *,
    base: str | None = None,
    tuned: str | None = None,
    reference: str | None = None,
    pairs: Mapping[str, Any] | None = None,
    preset: str | None = None,
    engine_config: EngineConfig | Mapping[str, Any] | None = None,
) -> EngineBackend:
    """The process's backend of a trio: the same arguments give the same engine, loaded once, when it is first needed.

    Name `preset`, or `base` with `tuned` and `reference`, or `base` with `pairs` (name -> `TunedPair`, or a mapping or
    pair of sources).

    Raises:
        InvalidOptionError: the arguments contradict each other or are incomplete.
    """
    config = engine_config if isinstance(engine_config, EngineConfig) else EngineConfig(**(engine_config or {}))
    chosen = _pairs(tuned, reference, pairs)
    if preset is not None and (base is not None or chosen):
        raise InvalidOptionError("preset names a whole trio; do not combine it with base, tuned, ...", option="preset")
    if preset is None and base is None:
        raise InvalidOptionError("name the large model: base=..., or preset=...", option="base")

    def load() -> Any:
        from eft_engine import Engine, load_preset

        if base is None:
            return load_preset(str(preset), config=config)
        return Engine.load(base, pairs=chosen, config=config)

    dumped = {name: pair.model_dump(mode="json") for name, pair in chosen.items()}
    key = json.dumps([preset, base, dumped, config.model_dump(mode="json")], sort_keys=True, default=str)
    with _SHARED_LOCK:
        if key not in _SHARED:
            _SHARED[key] = EngineBackend(load, model_name=preset or str(base), identity=key)
        return _SHARED[key]


def report_on_trio(base: str, pairs: Mapping[str, TunedPair], config: EngineConfig) -> TrioReport:
    """What is known of a trio before any weight is read: its members, and the proof that they share their vocabulary.

    Raises:
        LoadError: a member is missing, unreadable or of an unsupported kind.
        VocabularyMismatchError: the members do not mean the same token by the same id.
    """
    from eft_engine import inspect_trio

    return inspect_trio(base, pairs, config)


def _pairs(tuned: str | None, reference: str | None, pairs: Mapping[str, Any] | None) -> dict[str, TunedPair]:
    if (tuned is None) != (reference is None):
        raise InvalidOptionError("tuned and reference belong together; give both", option="tuned")
    chosen = {"tuned": TunedPair(tuned, reference)} if tuned is not None and reference is not None else {}
    for name, pair in (pairs or {}).items():
        match pair:
            case TunedPair():
                chosen[name] = pair
            case Mapping():
                chosen[name] = TunedPair(**pair)
            case (str(first), str(second)):
                chosen[name] = TunedPair(first, second)
            case _:
                raise InvalidOptionError(
                    f"pair {name!r} must be a TunedPair, a mapping or (tuned, reference), got {pair!r}", option="pairs"
                )
    return chosen


# ---- for tests of chains -------------------------------------------------------------------------------------------------
