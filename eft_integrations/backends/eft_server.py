"""The dialect of plain `eft serve` (docs/server.md): OpenAI's, with an `eft` block.

The server does all there is to do: templates, grammars, reading of calls. Its answers are what its own backend gave, piece by
piece; only the ids of tokens with log-probabilities do not travel (they are -1), and for a raw text neither do the members'.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import httpx

from eft_engine import (
    EngineStats,
    Lark,
    PromptPair,
    Regex,
    SamplingParams,
    TokenIds,
    TokenLogprobs,
    Usage,
    Without,
    errors,
)
from eft_engine.outputs import Progress, TopToken
from eft_engine.prompt_pairs import Side
from eft_engine.weights import as_json
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
from eft_integrations.backends.metrics import eft_stats
from eft_integrations.backends.refusals import Refusal, eft_meaning
from eft_integrations.chat.messages import InvalidToolCall, Tool
from eft_integrations.chat.request import CallDelta, ChatDelta, ChatRequest, ChatResult, ToolChoice
from eft_integrations.json_types import Json, JsonObject
from eft_integrations.sampling import SamplingFields, sampling_form
from eft_integrations.so_far import AnswerSoFar
from eft_integrations.weights import weights_form
from eft_integrations.wire.reasoning import effort_of

UNKNOWN_ID = -1


class EFTDialect:
    """How plain `eft serve` is asked.

    Args:
        connection: to the server.
        model: what it said of the model.
    """

    def __init__(self, connection: Connection, model: RemoteModel) -> None:
        self._connection = connection
        self._model = model

    def call(self, request: ChatRequest) -> _Call:
        """See `Dialect`."""
        self._model.check_weights(request.reward_weights, prompt_pairs_of(request))
        body = {
            "model": self._model.name,
            "stream": True,
            "stream_options": {"include_usage": True},
            **_prompt_fields(request),
            **_answer_fields(request),
        }
        path = "chat/completions" if request.prompt is None else "completions"
        return _Call(f"{self._connection.url}/{path}", body, self._connection, is_text=request.prompt is not None)

    def token_ids(self, text: str) -> list[int]:
        """See `ChatBackend`."""
        tokenized = self._tokenize({"prompt": text})
        with self._connection.reading():
            return [int(token) for token in tokenized["tokens"]]

    def count_prompt_tokens(self, request: ChatRequest) -> int:
        """See `ChatBackend`. What `/tokenize` cannot be told, raw texts and documents, is counted by an answer of one token."""
        if request.prompt is not None or request.documents:
            return self._count_by_answer(request)
        fields = _prompt_fields(request)
        if fields.pop("tool_choice", None) == "none":
            fields.pop("tools", None)
        fields.pop("parallel_tool_calls", None)
        tokenized = self._tokenize(fields)
        with self._connection.reading():
            return int(tokenized["count"])

    def _count_by_answer(self, request: ChatRequest) -> int:
        path = "chat/completions" if request.prompt is None else "completions"
        body = {"model": self._model.name, **_prompt_fields(request), "max_tokens": 1}
        if body.get("tool_choice", "none") != "none":  # a demanded call does not fit into one token
            body["tool_choice"] = "auto"
        try:
            answer = self._post(f"{self._connection.url}/{path}", body)
        except errors.ContextOverflowError as error:
            return error.prompt_len
        with self._connection.reading():
            return read_usage(answer["usage"]).prompt_tokens

    def _tokenize(self, fields: JsonObject) -> Received:
        return self._post(f"{self._connection.root}/tokenize", {"model": self._model.name, **fields})

    def _post(self, url: str, body: JsonObject) -> Received:
        response = self._read(self._connection.post(url, body))
        with self._connection.reading():
            answer: Received = response.json()
            return answer

    def _read(self, response: httpx.Response) -> httpx.Response:
        if response.status_code != 200:
            raise eft_meaning(Refusal.of(response), self._model.context_len)
        return response

    def stats(self) -> EngineStats:
        """See `ChatBackend`."""
        response = self._read(self._connection.get(f"{self._connection.root}/metrics", timeout_s=STATS_TIMEOUT_S))
        with self._connection.reading():
            return eft_stats(response.text, self._model.name)

    def meaning(self, refusal: Refusal, request: ChatRequest) -> errors.EFTError:
        """See `Dialect`."""
        return eft_meaning(refusal, self._model.context_len)


# ---- what is asked -------------------------------------------------------------------------------------------------------


def _prompt_fields(request: ChatRequest) -> JsonObject:
    """What the prompt is made of.

    Raises:
        EmptyPromptError: there are no messages.
        InvalidOptionError: a chat template or a notation of calls; the server has its own.
    """
    if request.prompt is not None:
        return {"prompt": request.prompt}
    if not request.messages:
        raise errors.EmptyPromptError("the prompt is empty; give a text or at least one message")
    if request.chat_template is not None:
        raise errors.InvalidOptionError(
            "chat_template: eft serve renders messages with its own template and takes none from a request; give the model that "
            "it serves another one, or send a prompt that is rendered already",
            option="chat_template",
        )
    if request.tool_notation is not None:
        raise errors.InvalidOptionError(
            "tool_notation: eft serve reads calls as the model's chat template says and takes no notation from a request",
            option="tool_notation",
        )
    fields: JsonObject = {"messages": [message.as_openai() for message in request.messages]}
    if request.tools:
        fields |= {"tools": [_tool_form(tool) for tool in request.tools], **_choice_fields(request.tool_choice)}
    if (effort := effort_of(request.reasoning)) is not None:
        fields["reasoning_effort"] = effort
    if request.reasoning_budget is not None:
        fields["eft_reasoning_budget"] = request.reasoning_budget
    if request.reasoning_tags is not None:
        fields["eft_reasoning_tags"] = list(request.reasoning_tags)
    if request.template_variables:
        fields["chat_template_kwargs"] = dict(request.template_variables)
    if request.documents:
        fields["documents"] = [dict(document) for document in request.documents]
    return fields


def _tool_form(tool: Tool) -> JsonObject:
    form = tool.as_openai()
    return {**form, "function": {**form["function"], "strict": True}} if tool.strict else form


def _choice_fields(choice: ToolChoice) -> JsonObject:
    named: JsonObject = {"type": "function", "function": {"name": choice.name}}
    return {
        "tool_choice": named if choice.mode == "named" else choice.mode,
        "parallel_tool_calls": choice.parallel,
    }


def _answer_fields(request: ChatRequest) -> JsonObject:
    """How the answer is drawn, and what it must look like. All fields are named, since the server has defaults of its own.

    Raises:
        InvalidOptionError: a field is unknown, out of range, or has no place in a request to a server.
    """
    sampling = SamplingParams(**request.sampling)
    for name in sorted(set(SamplingParams.model_fields) - set(SamplingFields.model_fields) - {"logprobs"}):
        if getattr(sampling, name) != SamplingParams.model_fields[name].default:
            raise errors.InvalidOptionError(
                f"{name} cannot be set in a request to eft serve; leave it out, or load the trio in this process",
                option=name,
            )
    fields: JsonObject = {name: value for name, value in sampling_form(sampling).items() if value is not None}
    if sampling.logit_bias:  # -inf forbids a token, and JSON has no number for it
        fields["logit_bias"] = {
            str(token): bias if math.isfinite(bias) else str(bias) for token, bias in sampling.logit_bias.items()
        }
    if sampling.logprobs is not None:
        is_text = request.prompt is not None
        fields |= {"logprobs": sampling.logprobs} if is_text else {"logprobs": True, "top_logprobs": sampling.logprobs}
    if request.response_schema is not None:
        schema: JsonObject = {"name": "answer", "schema": dict(request.response_schema)}
        if request.strict_response:
            schema["strict"] = True
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    match request.response_grammar:
        case Regex(pattern=pattern):
            fields["structured_outputs"] = {"regex": pattern}
        case Lark(grammar=grammar):
            fields["structured_outputs"] = {"grammar": grammar}
    fields |= _steering_fields(request)
    if request.prompt is None and not request.lenient_tool_calls:
        fields["eft_lenient_tool_calls"] = False
    if request.prompt is None and request.progress:
        fields["eft_progress"] = True
    return fields


def prompt_pairs_of(request: ChatRequest) -> dict[str, PromptPair]:
    """All prompt pairs of a request."""
    options = request.composition
    return {**({} if options is None else options.prompt_pairs), **request.prompt_pairs}


def _steering_fields(request: ChatRequest) -> JsonObject:
    """Weights, prompt pairs and what goes with them. A text has no calls and no thoughts, so it is not told of their weights."""
    fields: JsonObject = {}
    weights = {"eft_reward_weights": request.reward_weights}
    if request.prompt is None:
        weights |= {"eft_call_weight": request.call_weight, "eft_reasoning_weight": request.reasoning_weight}
        if request.call_lookahead is not None:
            fields["eft_call_lookahead"] = request.call_lookahead
    fields |= {name: weights_form(asked) for name, asked in weights.items() if asked is not None}
    if pairs := prompt_pairs_of(request):
        fields["eft_prompt_pairs"] = {name: _pair_form(pair) for name, pair in pairs.items()}
    if (said := request.composition) is not None:
        shares = {"eft_min_plausibility": said.min_plausibility, "eft_tuned_plausibility": said.tuned_plausibility}
        fields |= {field: share for field, share in shares.items() if share}
    return fields


def _pair_form(pair: PromptPair) -> JsonObject:
    form: JsonObject = {"weight": as_json(pair.weight)}
    if pair.model != "base":
        form["model"] = pair.model
    for name in ("positive", "negative"):
        if (side := getattr(pair, name)) is not None:
            form[name] = _side_form(side)
    return form


def _side_form(side: Side) -> Json:
    match side:
        case Without(texts=texts):
            return {"texts": list(texts)}
        case TokenIds(ids=ids):
            return {"ids": list(ids)}
        case Mapping():
            return dict(side)
        case list() | tuple():
            return [dict(message) for message in side]
    return str(side)


# ---- what is answered ----------------------------------------------------------------------------------------------------


@dataclass
class _Call:
    """See `Call`."""

    url: str
    body: JsonObject
    connection: Connection
    is_text: bool
    so_far: AnswerSoFar = field(default_factory=AnswerSoFar)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    report: Received | None = None
    usage: Usage | None = None

    def feed(self, event: Received) -> list[ChatDelta]:
        """See `Call`."""
        with self.connection.reading():
            if event.get("usage"):
                self.usage = read_usage(event["usage"])
            told = event.get("eft") or {}
            if "choices" in told:
                self.report = told
            progress = Progress(**told["progress"]) if told.get("progress") else None
            return [piece for choice in event["choices"] for piece in self._take(choice, progress)]

    def _take(self, choice: Received, progress: Progress | None) -> list[ChatDelta]:
        self.finish_reason = choice["finish_reason"] or self.finish_reason
        read = _text_logprobs if self.is_text else _chat_logprobs
        logprobs = () if choice["logprobs"] is None else read(choice["logprobs"])
        self.logprobs += logprobs
        pieces = [ChatDelta(text=choice["text"])] if self.is_text else list(_pieces(choice))
        pieces = [piece for piece in pieces if piece != ChatDelta()] or ([ChatDelta()] if logprobs else [])
        if logprobs:
            pieces[0] = dataclasses.replace(pieces[0], logprobs=logprobs)
        if progress is not None:
            pieces = [dataclasses.replace(piece, progress=progress) for piece in pieces]
        for piece in pieces:
            self.so_far.add(piece)
        return pieces

    def finish(self) -> list[ChatDelta]:
        """See `Call`."""
        finish_reason = FINISH_REASONS.get(self.finish_reason)
        if finish_reason is None or self.usage is None or self.report is None:
            raise not_whole(f"its finish_reason is {self.finish_reason!r}")
        told = [name for choice in self.report["choices"] for name in choice.get("ignored") or ()]
        if ignored := [name for name in self.report.get("ignored") or () if name not in told]:
            raise errors.RemoteServerError(
                f"the server did not honour {', '.join(ignored)}; give server and client the same version of eft",
                status=None,
            )
        with self.connection.reading():
            (report,) = self.report["choices"]
            metadata = {**report, "reward_weights": self.report["reward_weights"]}
            invalid = tuple(InvalidToolCall(**call) for call in metadata.pop("invalid_tool_calls", None) or ())
        broken = [call.call_id for call in invalid]
        result = ChatResult(
            content=self.so_far.text,
            tool_calls=tuple(call for call in self.so_far.calls if call.call_id not in broken),
            invalid_tool_calls=invalid,
            finish_reason=finish_reason,
            usage=self.usage,
            logprobs=tuple(self.logprobs) if "logprobs" in self.body else None,
            metadata=metadata,
            reasoning=self.so_far.reasoning,
        )
        return [ChatDelta(result=result)]


FINISH_REASONS: Mapping[str | None, Literal["stop", "length", "tool_calls"]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
}


def _pieces(choice: Received) -> Iterator[ChatDelta]:
    """Pieces of a thought, a text and calls. What the chunk that ends an answer says of calls is for clients that mend them."""
    delta = choice["delta"]
    yield ChatDelta(reasoning=delta.get("reasoning_content") or "")
    yield ChatDelta(text=delta.get("content") or "")
    for call in (delta.get("tool_calls") or ()) if choice["finish_reason"] is None else ():
        function = call["function"]
        piece = CallDelta(int(call["index"]), call.get("id"), function.get("name"), function.get("arguments") or "")
        yield ChatDelta(call=piece)


def _chat_logprobs(logprobs: Received) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(
            UNKNOWN_ID,
            token["token"],
            token["logprob"],
            tuple(
                TopToken(UNKNOWN_ID, top["token"], top["logprob"], received_bytes(top["bytes"]))
                for top in token["top_logprobs"]
            ),
            token["eft"],
            received_bytes(token["bytes"]),
        )
        for token in logprobs["content"]
    )


def _text_logprobs(logprobs: Received) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(
            UNKNOWN_ID,
            token,
            logprob,
            tuple(TopToken(UNKNOWN_ID, other, value, bytes_of_text(other)) for other, value in others.items()),
            {},
            bytes_of_text(token),
        )
        for token, logprob, others in zip(
            logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
        )
    )
