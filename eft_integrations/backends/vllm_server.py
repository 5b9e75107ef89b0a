"""A `ChatBackend` over HTTP: a trio that vLLM serves, on other machines, behind the seam that all adapters talk to.

The server renders prompts and counts tokens; grammars of tool calls and schemas are written here, and answers read here, by
the same code that does it for an engine in this process. So an adapter behaves the same on one machine and on a cluster. The
server is one that `eft serve --engine vllm` started (docs/vllm.md).
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import httpx

from eft_engine import (
    EngineStats,
    GenerationDelta,
    JsonSchema,
    Lark,
    RequestMetrics,
    RequestOutput,
    SamplingParams,
    TokenLogprobs,
    Usage,
    errors,
)
from eft_engine.config import resolve_weights
from eft_engine.outputs import TopToken
from eft_integrations.backends.protocol import last_result
from eft_integrations.chat.answer import AnswerReader
from eft_integrations.chat.prompt import Asked
from eft_integrations.chat.request import ChatDelta, ChatRequest, ChatResult
from eft_integrations.chat.tool_calls import COMPACT

MAX_SEED = 2**63
"""Seeds of vLLM are signed."""


@dataclass(frozen=True)
class RemoteModel:
    """What a server says of the model that it serves."""

    name: str
    context_len: int
    weights: Mapping[str, float]
    chat_template: str | None
    added_tokens: frozenset[str]


class RemoteBackend:
    """Answers with a trio that a server holds.

    Args:
        base_url: address of the server's API, with its version: "http://host:8000/v1".
        served_name: the name of the model there; None: the first that the server lists.
        api_key: what the server wants to be sent, if it wants one.
        connect_timeout_s: longest wait for a connection; answers may take as long as they take (adapters have timeouts of
        their own).

    Nothing is sent before something is asked. May be used from any thread and event loop.
    """

    def __init__(
        self,
        base_url: str,
        *,
        served_name: str | None = None,
        api_key: str | None = None,
        connect_timeout_s: float = 10.0,
    ) -> None:
        self._url = base_url.rstrip("/")
        self._root = self._url.removesuffix("/v1")
        self._served_name = served_name
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._options: dict[str, Any] = {
            "headers": headers,
            "timeout": httpx.Timeout(None, connect=connect_timeout_s),
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=64),
        }
        self._client = httpx.Client(**self._options)
        self._async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()
        self._model: RemoteModel | None = None
        self._lock = threading.Lock()
        self.identity = f"{self._url} {served_name or ''}"

    # ---- what the server says of itself --------------------------------------------------------------------------------

    @property
    def model(self) -> RemoteModel:
        """What the server says of the model; asked once.

        Raises:
            RemoteServerError: the server cannot be reached, or serves no trio.
            ModelNotFoundError: it has no model of that name.
        """
        if self._model is None:
            with self._lock:
                if self._model is None:
                    self._model = self._describe()
        return self._model

    @property
    def is_loaded(self) -> bool:
        """Whether the server was asked already."""
        return self._model is not None

    @property
    def model_name(self) -> str:
        """See `ChatBackend`. A name that was given is not asked for."""
        return self._served_name or self.model.name

    @property
    def weights(self) -> Mapping[str, float]:
        """See `ChatBackend`."""
        return self.model.weights

    @property
    def context_len(self) -> int:
        """See `ChatBackend`."""
        return self.model.context_len

    def _describe(self) -> RemoteModel:
        listed = self._get(f"{self._url}/models")["data"]
        names = [model["id"] for model in listed]
        wanted = self._served_name or names[0]
        if wanted not in names:
            raise errors.ModelNotFoundError(f"there is no model {wanted!r} at {self._url}; it has {', '.join(names)}")
        found = listed[names.index(wanted)]
        if "eft" not in found:
            raise errors.RemoteServerError(
                f"the server at {self._url} serves {wanted!r} and says nothing of pairs; start it with eft serve --engine vllm",
                status=None,
            )
        tokenizer = self._tokenizer_info()
        added = tokenizer.get("added_tokens_decoder") or {}
        return RemoteModel(
            name=wanted,
            context_len=int(found["max_model_len"]),
            weights={name: float(weight) for name, weight in found["eft"]["pairs"].items()},
            chat_template=tokenizer.get("chat_template"),
            added_tokens=frozenset(_content(token) for token in added.values()),
        )

    def _tokenizer_info(self) -> Mapping[str, Any]:
        """The chat template and added tokens; nothing where the server keeps them to itself (tools are announced in words then)."""
        response = self._send(self._client.build_request("GET", f"{self._root}/tokenizer_info"))
        if response.status_code == 404:
            return {}
        info: Mapping[str, Any] = _checked(response).json()
        return info

    def token_ids(self, text: str) -> list[int]:
        """See `ChatBackend`."""
        body = {"model": self.model_name, "prompt": text, "add_special_tokens": False}
        return [int(token) for token in self._post(f"{self._root}/tokenize", body)["tokens"]]

    def count_prompt_tokens(self, request: ChatRequest) -> int:
        """See `ChatBackend`."""
        asked = self._asked(request)
        body = {"model": self.model_name, **_prompt_fields(asked, request)}
        body.pop("tool_choice", None)
        return int(self._post(f"{self._root}/tokenize", body)["count"])

    def stats(self) -> EngineStats:
        """See `ChatBackend`: of all requests of the server, whoever sent them."""
        response = _checked(self._send(self._client.build_request("GET", f"{self._root}/metrics")))
        return _stats(response.text)

    # ---- answers -------------------------------------------------------------------------------------------------------

    def chat(self, request: ChatRequest) -> ChatResult:
        """See `ChatBackend`."""
        return last_result([delta.result for delta in self.stream(request)])

    def stream(self, request: ChatRequest) -> Iterator[ChatDelta]:
        """See `ChatBackend`. The request is checked and sent now, not when the first piece is asked for."""
        call = self._call(request)
        with _reaching(self._url):
            response = self._client.send(self._client.build_request("POST", call.url, json=call.body), stream=True)
            if response.status_code != 200:
                response.read()
                self._fail(response, request)
        return self._read(response, call)

    def _read(self, response: httpx.Response, call: _Call) -> Iterator[ChatDelta]:
        try:
            with _reaching(self._url):
                for line in response.iter_lines():
                    for delta in call.feed(line):
                        yield from call.reader.feed(delta)
            yield from call.reader.feed(call.last())
        finally:
            response.close()

    async def achat(self, request: ChatRequest) -> ChatResult:
        """See `ChatBackend`."""
        return last_result([delta.result async for delta in self.astream(request)])

    async def astream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        """See `ChatBackend`."""
        if self._model is None:
            await asyncio.to_thread(lambda: self.model)
        call, client = self._call(request), self._async_client()
        with _reaching(self._url):
            response = await client.send(client.build_request("POST", call.url, json=call.body), stream=True)
        try:
            if response.status_code != 200:
                await response.aread()
                await asyncio.to_thread(self._fail, response, request)
            with _reaching(self._url):
                async for line in response.aiter_lines():
                    for delta in call.feed(line):
                        for piece in call.reader.feed(delta):
                            yield piece
            for piece in call.reader.feed(call.last()):
                yield piece
        finally:
            await response.aclose()

    def close(self) -> None:
        """Close the connections of threads; those of an event loop end with it."""
        self._client.close()

    # ---- requests ------------------------------------------------------------------------------------------------------

    def _asked(self, request: ChatRequest) -> Asked:
        return Asked.of(request, chat_template=self.model.chat_template, added_tokens=set(self.model.added_tokens))

    def _call(self, request: ChatRequest) -> _Call:
        asked = self._asked(request)
        weights = resolve_weights(request.reward_weights, self.weights, owner=self.model_name)
        body = {
            "model": self.model_name,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "eft_reward_weights": weights,
            **_prompt_fields(asked, request),
            **_sampling_fields(asked.options["sampling"], is_text=request.prompt is not None),
        }
        path = "completions" if request.prompt is not None else "chat/completions"
        reader = AnswerReader(asked)
        return _Call(f"{self._url}/{path}", body, reader, weights, is_text=request.prompt is not None)

    def _async_client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._async_clients:
                self._async_clients[loop] = httpx.AsyncClient(**self._options)
            return self._async_clients[loop]

    def _get(self, url: str) -> Any:
        return _checked(self._send(self._client.build_request("GET", url))).json()

    def _post(self, url: str, body: Mapping[str, Any]) -> Any:
        return _checked(self._send(self._client.build_request("POST", url, json=body))).json()

    def _send(self, request: httpx.Request) -> httpx.Response:
        with _reaching(self._url):
            return self._client.send(request)

    def _fail(self, response: httpx.Response, request: ChatRequest) -> None:
        """Raise what a refused answer means."""
        if response.status_code == 400 and _error(response).get("param") in ("input_tokens", "input_text"):
            num_tokens = self.count_prompt_tokens(request)
            raise errors.ContextOverflowError(
                f"the prompt has {num_tokens} tokens and {self.model_name} a context of {self.context_len}: {_message(response)}",
                prompt_len=num_tokens,
                context_len=self.context_len,
            )
        _checked(response)


@dataclass
class _Call:
    """One request on its way, and what came back of it so far."""

    url: str
    body: Mapping[str, Any]
    reader: AnswerReader
    weights: Mapping[str, float]
    is_text: bool
    started_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    request_id: str = ""
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: Any = None
    usage: Usage | None = None
    is_over: bool = False

    def feed(self, line: str) -> Iterator[GenerationDelta]:
        """Take a line of the server's event stream."""
        if not line.startswith("data:"):
            return
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            self.is_over = True
            return
        event = json.loads(data)
        if "error" in event:
            raise _meaning(event["error"].get("code"), event["error"], str(event["error"].get("message")))
        self.request_id = event.get("id") or self.request_id
        if event.get("usage"):
            self.usage = _usage(event["usage"])
        for choice in event.get("choices", ()):
            yield from self._take(choice)

    def _take(self, choice: Mapping[str, Any]) -> Iterator[GenerationDelta]:
        text = choice.get("text") if self.is_text else choice["delta"].get("content")
        token_ids = tuple(choice.get("token_ids") or ())
        logprobs = tuple((_text_logprobs if self.is_text else _chat_logprobs)(choice.get("logprobs"), token_ids))
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if token_ids and self.first_s is None:
            self.first_s = time.monotonic()
        self.text.append(text or "")
        self.token_ids += token_ids
        self.logprobs += logprobs
        if text or token_ids:
            yield GenerationDelta(text_delta=text or "", token_ids=token_ids, logprobs=logprobs)

    def last(self) -> GenerationDelta:
        """The end of the answer, with the whole of it.

        Raises:
            RemoteServerError: the stream broke off, or the server gave the request up.
        """
        if not self.is_over or self.usage is None or self.finish_reason not in ("stop", "length"):
            raise errors.RemoteServerError(
                f"the server's answer is not whole (finish_reason {self.finish_reason!r})", status=None
            )
        ended = time.monotonic()
        first = self.first_s if self.first_s is not None else ended
        num_later = max(len(self.token_ids) - 1, 1)
        output = RequestOutput(
            request_id=self.request_id,
            text="".join(self.text),
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            stop_reason=None,
            usage=self.usage,
            metrics=RequestMetrics(
                queue_s=0.0,
                ttft_s=first - self.started_s,
                tpot_s=(ended - first) / num_later,
                total_s=ended - self.started_s,
                num_forwards={},
            ),
            reward_weights=dict(self.weights),
            logprobs=tuple(self.logprobs) if "logprobs" in self.body else None,
        )
        return GenerationDelta(text_delta="", finish_reason=self.finish_reason, output=output)


# ---- the wire ------------------------------------------------------------------------------------------------------------


def _prompt_fields(asked: Asked, request: ChatRequest) -> dict[str, Any]:
    """A text, or messages with what the chat template reads. Tools are shown to the model; calls are constrained by our own
    grammar.
    """
    if request.prompt is not None:
        return {"prompt": request.prompt}
    variables = dict(asked.options["prompt_options"].template_variables)
    fields: dict[str, Any] = {"messages": [_message_form(message) for message in asked.prompt]}
    if tools := variables.pop("tools", None):
        fields |= {"tools": tools, "tool_choice": "none"}
    if documents := variables.pop("documents", None):
        variables["documents"] = documents
    if variables:
        fields["chat_template_kwargs"] = variables
    if request.chat_template is not None:
        fields["chat_template"] = request.chat_template
    return fields


def _message_form(message: Any) -> dict[str, Any]:
    """OpenAI's form, in which arguments are text."""
    calls = [
        {**call, "function": {**call["function"], "arguments": _as_text(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return {**message, "tool_calls": calls} if calls else dict(message)


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _sampling_fields(sampling: SamplingParams, *, is_text: bool) -> dict[str, Any]:
    same = (
        "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "ignore_eos",
    )  # fmt: skip
    fields: dict[str, Any] = {name: getattr(sampling, name) for name in same}
    fields |= {"stop": list(sampling.stop), "stop_token_ids": list(sampling.stop_token_ids)}
    if sampling.logit_bias:
        fields["logit_bias"] = {
            str(token): max(min(bias, 100.0), -100.0) for token, bias in sampling.logit_bias.items()
        }
    if sampling.seed is not None:
        fields["seed"] = sampling.seed if sampling.seed < MAX_SEED else sampling.seed - 2 * MAX_SEED
    if sampling.logprobs is not None:
        fields |= {"logprobs": sampling.logprobs} if is_text else {"logprobs": True, "top_logprobs": sampling.logprobs}
    match sampling.grammar:
        case Lark(grammar=grammar):
            fields["structured_outputs"] = {"grammar": grammar}
        case JsonSchema(json_schema=schema):
            schema = {**schema, "x-guidance": COMPACT}
            fields["structured_outputs"] = {"grammar": f"start: %json {json.dumps(schema, ensure_ascii=False)}"}
    return fields


def _chat_logprobs(logprobs: Mapping[str, Any] | None, token_ids: Sequence[int]) -> Iterator[TokenLogprobs]:
    """A server does not say the ids of alternatives; they are -1."""
    for token_id, entry in zip(token_ids, (logprobs or {}).get("content") or (), strict=False):
        top = tuple(TopToken(-1, other["token"], other["logprob"]) for other in entry.get("top_logprobs") or ())
        yield TokenLogprobs(token_id, entry["token"], entry["logprob"], top, {})


def _text_logprobs(logprobs: Mapping[str, Any] | None, token_ids: Sequence[int]) -> Iterator[TokenLogprobs]:
    if logprobs is None:
        return
    alternatives = logprobs.get("top_logprobs") or [None] * len(token_ids)
    for token_id, token, logprob, others in zip(
        token_ids, logprobs["tokens"], logprobs["token_logprobs"], alternatives, strict=False
    ):
        top = tuple(TopToken(-1, other, value) for other, value in (others or {}).items())
        yield TokenLogprobs(token_id, token, logprob, top, {})


def _usage(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage.get("completion_tokens") or 0,
        cached_prompt_tokens=details.get("cached_tokens") or 0,
    )


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, Mapping) else token)


# ---- errors --------------------------------------------------------------------------------------------------------------


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Connections that fail, as this package's error."""
    try:
        yield
    except httpx.TransportError as error:
        raise errors.RemoteServerError(f"the server at {url} cannot be reached: {error!r}", status=None) from error


def _error(response: httpx.Response) -> Mapping[str, Any]:
    """The error of an answer in OpenAI's form."""
    try:
        body = response.json()
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, Mapping) else None
    return error if isinstance(error, Mapping) else {}


def _message(response: httpx.Response) -> str:
    return str(_error(response).get("message") or response.text[:300])


def _checked(response: httpx.Response) -> httpx.Response:
    """The answer, if it is one.

    Raises:
        ModelNotFoundError: 404.
        InvalidOptionError: another refusal of what was asked.
        RemoteServerError: anything else.
    """
    if response.status_code == 200:
        return response
    raise _meaning(response.status_code, _error(response), _message(response))


def _meaning(status: int | None, error: Mapping[str, Any], message: str) -> errors.EFTError:
    """What a status means, whether the answer had it or an event of a stream."""
    if status == 404:
        return errors.ModelNotFoundError(message)
    if status in (400, 413, 422):
        return errors.InvalidOptionError(message, option=error.get("param"))
    return errors.RemoteServerError(f"the server answered {status}: {message}", status=status)


# ---- metrics -------------------------------------------------------------------------------------------------------------

SAMPLE = re.compile(r"^vllm:(\w+?)(?:\{[^}]*\})? ([-+.\deE]+)$", re.MULTILINE)


def _stats(exposition: str) -> EngineStats:
    """The metrics of vLLM in our words.

    >>> _stats('vllm:prompt_tokens_total{engine="0"} 7.0').prompt_tokens
    7
    """
    totals: dict[str, float] = {}
    for name, value in SAMPLE.findall(exposition):
        totals[name] = totals.get(name, 0.0) + float(value)

    def count(name: str) -> int:
        return int(totals.get(name, 0))

    return EngineStats(
        num_running=count("num_requests_running"),
        num_waiting=count("num_requests_waiting"),
        num_warm_prefixes=0,
        num_finished=count("request_success_total"),
        num_failed=0,
        num_cancelled=0,
        prompt_tokens=count("prompt_tokens_total"),
        cached_prompt_tokens=count("prefix_cache_hits_total"),
        completion_tokens=count("generation_tokens_total"),
        num_drafted=count("spec_decode_num_draft_tokens_total"),
        num_accepted=count("spec_decode_num_accepted_tokens_total"),
        num_steps=0,
        networks=(),
    )


# ---- one backend per server ----------------------------------------------------------------------------------------------

_SHARED: dict[tuple[str, str | None, str | None], RemoteBackend] = {}
_SHARED_LOCK = threading.Lock()


def remote_backend(base_url: str, *, served_name: str | None = None, api_key: str | None = None) -> RemoteBackend:
    """The process's backend of a server and a name there: the same arguments give the same connections."""
    key = (base_url, served_name, api_key)
    with _SHARED_LOCK:
        if key not in _SHARED:
            _SHARED[key] = RemoteBackend(base_url, served_name=served_name, api_key=api_key)
        return _SHARED[key]
