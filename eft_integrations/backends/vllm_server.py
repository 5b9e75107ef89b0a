"""The dialect of a server that `eft serve --engine vllm` started (docs/vllm.md).

The server renders prompts and counts tokens; grammars of tool calls and schemas are written here, and answers read here, by
the same code that does it for an engine in this process. So an adapter behaves the same on one machine and on a cluster.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from eft_engine import (
    EngineStats,
    GenerationDelta,
    JsonSchema,
    Lark,
    Regex,
    RequestMetrics,
    RequestOutput,
    SamplingParams,
    TokenIds,
    TokenLogprobs,
    Usage,
    Weight,
    control_texts,
    errors,
)
from eft_engine.outputs import FinishReason, Progress, TopToken
from eft_integrations.backends.connection import (
    STATS_TIMEOUT_S,
    Connection,
    Received,
    RemoteModel,
    bytes_of_text,
    not_whole,
    read_usage,
    received_bytes,
)
from eft_integrations.backends.metrics import vllm_stats
from eft_integrations.backends.refusals import Refusal
from eft_integrations.chat.answer import AnswerReader
from eft_integrations.chat.prompt import Asked, ControlTokens
from eft_integrations.chat.request import ChatDelta, ChatRequest
from eft_integrations.json_types import JsonObject
from eft_integrations.wire.openai import arguments_text
from eft_integrations.wire.reasoning import FIELDS

LARK = re.compile(r"^\s*(%llguidance\b|start\s*:)", re.MULTILINE)
MAX_SEED = 2**63
"""Seeds of vLLM are signed."""

COMPACT: JsonObject = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Whitespace in JSON as the engine has it by default (`JsonSchema.whitespace`)."""


class VLLMDialect:
    """How vLLM's server is asked.

    Args:
        connection: to the server.
        model: what it said of the model.
    """

    def __init__(self, connection: Connection, model: RemoteModel) -> None:
        self._connection = connection
        self._model = model
        tokenizer = self._tokenizer_info()
        with connection.reading():
            self._chat_template: str | None = tokenizer.get("chat_template")
            decoder = tokenizer.get("added_tokens_decoder") or {}
            added = {int(token_id): _token(token) for token_id, token in decoder.items()}
        structure = control_texts(added.values(), [self._chat_template or ""])
        self._control_tokens = ControlTokens.of(added, sorted(structure, key=lambda text: (-len(text), text)))

    def _tokenizer_info(self) -> Received:
        """The chat template and added tokens; nothing where the server keeps them to itself (tools are announced in words then)."""
        response = self._connection.get(f"{self._connection.root}/tokenizer_info")
        return {} if response.status_code == 404 else self._read(response)

    def _read(self, response: httpx.Response) -> Received:
        if response.status_code != 200:
            raise Refusal.of(response).meaning()
        with self._connection.reading():
            answer: Received = response.json()
            return answer

    def call(self, request: ChatRequest) -> _Call:
        """See `Dialect`.

        Raises:
            InvalidOptionError: JSON is to be closed inside its budget, which vLLM's grammars cannot do, or log-probabilities of
                members are asked for.
        """
        if request.member_logprobs:
            raise errors.InvalidOptionError(
                "eft_token_rewards: vLLM tells log-probabilities of the composition alone; leave it out, or ask an engine of this "
                "package",
                option="eft_token_rewards",
                value=True,
            )
        if request.sampling.get("close_within_budget"):
            raise errors.InvalidOptionError(
                "close_within_budget: vLLM does not close JSON inside max_tokens; leave it out and give more tokens (what is cut "
                "is told as cut), or ask an engine of this package",
                option="close_within_budget",
                value=True,
            )
        refuse_steering(request)
        asked = self._asked(request)
        weights = numbers_alone(self._model.check_weights(request.reward_weights, {}))
        body: JsonObject = {
            "model": self._model.name,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "eft_reward_weights": {**weights},
            **_plausibility_field(request),
            **_prompt_fields(asked, request),
            **_sampling_fields(asked.options["sampling"], is_text=request.prompt is not None),
        }
        path = "completions" if request.prompt is not None else "chat/completions"
        reader = AnswerReader(asked)
        url, is_text = f"{self._connection.url}/{path}", request.prompt is not None
        return _Call(url, body, self._connection, reader, weights, is_text=is_text)

    def _asked(self, request: ChatRequest) -> Asked:
        return Asked.of(request, chat_template=self._chat_template, control_tokens=self._control_tokens)

    def token_ids(self, text: str) -> list[int]:
        """See `ChatBackend`."""
        tokenized = self._tokenize({"prompt": text, "add_special_tokens": False})
        with self._connection.reading():
            return [int(token) for token in tokenized["tokens"]]

    def count_prompt_tokens(self, request: ChatRequest) -> int:
        """See `ChatBackend`."""
        fields = _prompt_fields(self._asked(request), request)
        fields.pop("tool_choice", None)
        tokenized = self._tokenize(fields)
        with self._connection.reading():
            return int(tokenized["count"])

    def _tokenize(self, fields: JsonObject) -> Received:
        url = f"{self._connection.root}/tokenize"
        return self._read(self._connection.post(url, {"model": self._model.name, **fields}))

    def stats(self) -> EngineStats:
        """See `ChatBackend`."""
        response = self._connection.get(f"{self._connection.root}/metrics", timeout_s=STATS_TIMEOUT_S)
        if response.status_code != 200:
            raise Refusal.of(response).meaning()
        with self._connection.reading():
            return vllm_stats(response.text)

    def meaning(self, refusal: Refusal, request: ChatRequest) -> errors.EFTError:
        """See `Dialect`."""
        if refusal.status == 400 and refusal.param in ("input_tokens", "input_text"):
            num_tokens, context_len = self.count_prompt_tokens(request), self._model.context_len
            return errors.ContextOverflowError(
                f"the prompt has {num_tokens} tokens and {self._model.name} a context of {context_len}: {refusal.message}",
                prompt_len=num_tokens,
                context_len=context_len,
            )
        return refusal.meaning()


@dataclass
class _Call:
    """See `Call`."""

    url: str
    body: JsonObject
    connection: Connection
    reader: AnswerReader
    weights: Mapping[str, float]
    is_text: bool
    started_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    request_id: str = ""
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage | None = None

    def feed(self, event: Received) -> list[ChatDelta]:
        """See `Call`."""
        with self.connection.reading():
            self.request_id = event.get("id") or self.request_id
            if event.get("usage"):
                self.usage = read_usage(event["usage"])
            deltas = [delta for choice in event.get("choices", ()) for delta in self._take(choice)]
        return [piece for delta in deltas for piece in self.reader.feed(delta)]

    def _take(self, choice: Received) -> Iterator[GenerationDelta]:
        text = choice.get("text") if self.is_text else _text_of(choice["delta"])
        token_ids = tuple(choice.get("token_ids") or ())
        logprobs = tuple((_text_logprobs if self.is_text else _chat_logprobs)(choice.get("logprobs"), token_ids))
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if token_ids and self.first_s is None:
            self.first_s = time.monotonic()
        self.text.append(text or "")
        self.token_ids += token_ids
        self.logprobs += logprobs
        if text or token_ids:
            progress = Progress(len(self.token_ids))
            yield GenerationDelta(text_delta=text or "", token_ids=token_ids, logprobs=logprobs, progress=progress)

    def finish(self) -> list[ChatDelta]:
        """See `Call`."""
        reasons: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}
        reason = reasons.get(self.finish_reason)
        if reason is None or self.usage is None:
            raise not_whole(f"its finish_reason is {self.finish_reason!r}")
        ended = time.monotonic()
        first = self.first_s if self.first_s is not None else ended
        num_later = max(len(self.token_ids) - 1, 1)
        output = RequestOutput(
            request_id=self.request_id,
            text="".join(self.text),
            token_ids=tuple(self.token_ids),
            finish_reason=reason,
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
        return list(self.reader.feed(GenerationDelta(text_delta="", finish_reason=reason, output=output)))


# ---- what vLLM cannot do -------------------------------------------------------------------------------------------------


def refuse_steering(request: ChatRequest) -> None:
    """Refuse what vLLM's engine has no place for.

    Raises:
        InvalidOptionError: prompt pairs, weights of a part of the answer, or a bound on implausible tokens.
    """
    pairs = dict(request.prompt_pairs) or (
        None if request.composition is None else dict(request.composition.prompt_pairs)
    )
    reasons = {
        "prompt_pairs": (pairs or None, "one request has one prompt there, which all members read"),
        "call_weight": (request.call_weight, "a request keeps its weights there, and no text is drawn twice"),
        "reasoning_weight": (
            request.reasoning_weight,
            "a request keeps its weights there, from the first token to the last",
        ),
        "call_lookahead": (
            request.call_lookahead,
            "a request keeps its weights there, from the first token to the last",
        ),
        "tuned_plausibility": (
            (request.composition and request.composition.tuned_plausibility) or None,
            "members are added up there, whatever each of them finds plausible",
        ),
    }
    for option, (value, reason) in reasons.items():
        if value is not None:
            raise errors.InvalidOptionError(
                f"{option}: vLLM cannot do it: {reason}; leave it out, or ask an engine of this package (eft serve)",
                option=option,
                value=value,
            )


def numbers_alone(weights: Mapping[str, Weight]) -> dict[str, float]:
    """Weights of which none follows the token.

    Raises:
        InvalidOptionError: one is a schedule.
    """
    for name, weight in weights.items():
        if not isinstance(weight, int | float):
            raise errors.InvalidOptionError(
                f"the weight of pair {name!r} is a schedule ({weight.kind}), and in vLLM a request keeps its weights; give a "
                "number, or ask an engine of this package (eft serve)",
                option="reward_weights",
                value=weight,
            )
    return {name: float(weight) for name, weight in weights.items() if isinstance(weight, int | float)}


def _plausibility_field(request: ChatRequest) -> JsonObject:
    share = 0.0 if request.composition is None else request.composition.min_plausibility
    return {"eft_min_plausibility": share} if share else {}


# ---- the wire ------------------------------------------------------------------------------------------------------------


def _text_of(delta: Received) -> str | None:
    """The text of a piece, thoughts and calls included.

    Raises:
        RemoteServerError: the server takes thoughts out of the text by itself.
    """
    if any(delta.get(name) for name in FIELDS):
        raise errors.RemoteServerError(
            "the server takes thoughts out of the text before it is read here; start vLLM without --reasoning-parser",
            status=None,
        )
    text: str | None = delta.get("content")
    return text


def _prompt_fields(asked: Asked, request: ChatRequest) -> JsonObject:
    """A text, or messages with what the chat template reads. Tools are shown to the model; calls are constrained by our own
    grammar.
    """
    if isinstance(asked.prompt, TokenIds):
        raise errors.InvalidOptionError(
            "token ids are read by an engine of this process only; send text", option="prompt"
        )
    if isinstance(asked.prompt, str):
        return {"prompt": asked.prompt}
    variables = dict(asked.options["prompt_options"].template_variables)
    fields: JsonObject = {"messages": [_message_form(message) for message in asked.prompt]}
    if tools := variables.pop("tools", None):
        fields |= {"tools": tools, "tool_choice": "none"}
    if documents := variables.pop("documents", None):
        variables["documents"] = documents
    if variables:
        fields["chat_template_kwargs"] = variables
    if request.chat_template is not None:
        fields["chat_template"] = request.chat_template
    return fields


def _message_form(message: Mapping[str, Any]) -> JsonObject:
    """OpenAI's form, in which arguments are text."""
    calls = [
        {**call, "function": {**call["function"], "arguments": arguments_text(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return {**message, "tool_calls": calls} if calls else dict(message)


def _sampling_fields(sampling: SamplingParams, *, is_text: bool) -> JsonObject:
    same = (
        "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "ignore_eos", "skip_special_tokens",
    )  # fmt: skip
    fields: JsonObject = {name: getattr(sampling, name) for name in same}
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
            fields["structured_outputs"] = {"grammar": _in_lark(grammar)}
        case Regex(pattern=pattern):
            fields["structured_outputs"] = {"regex": pattern}
        case JsonSchema(json_schema=schema):
            schema = {**schema, "x-guidance": COMPACT}
            fields["structured_outputs"] = {"grammar": f"start: %json {json.dumps(schema, ensure_ascii=False)}"}
    return fields


def _in_lark(grammar: str) -> str:
    """A grammar of which vLLM sees that it is in Lark: without a plain `start:` it takes a text for GBNF."""
    return grammar if LARK.search(grammar) else f"%llguidance {{}}\n\n{grammar}"


def _chat_logprobs(logprobs: Mapping[str, Any] | None, token_ids: Sequence[int]) -> Iterator[TokenLogprobs]:
    """A server does not say the ids of alternatives; they are -1."""
    for token_id, entry in zip(token_ids, (logprobs or {}).get("content") or (), strict=False):
        top = tuple(
            TopToken(-1, other["token"], other["logprob"], received_bytes(other.get("bytes")))
            for other in entry.get("top_logprobs") or ()
        )
        yield TokenLogprobs(token_id, entry["token"], entry["logprob"], top, {}, received_bytes(entry.get("bytes")))


def _text_logprobs(logprobs: Mapping[str, Any] | None, token_ids: Sequence[int]) -> Iterator[TokenLogprobs]:
    if logprobs is None:
        return
    alternatives = logprobs.get("top_logprobs") or [None] * len(token_ids)
    for token_id, token, logprob, others in zip(
        token_ids, logprobs["tokens"], logprobs["token_logprobs"], alternatives, strict=False
    ):
        top = tuple(TopToken(-1, other, value, bytes_of_text(other)) for other, value in (others or {}).items())
        yield TokenLogprobs(token_id, token, logprob, top, {}, bytes_of_text(token))


def _token(token: Received | str) -> tuple[str, bool]:
    """The text of an added token, and whether it is special."""
    return (token, True) if isinstance(token, str) else (str(token["content"]), bool(token.get("special")))
