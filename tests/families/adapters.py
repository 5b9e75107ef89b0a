"""LangChain, LlamaIndex and the HTTP server behind one small interface, so that a test of the matrix is written once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
from langchain_core.messages import AIMessage, AIMessageChunk, convert_to_messages
from langchain_core.utils.json import parse_partial_json
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, TextBlock, ThinkingBlock, ToolCallBlock

from eft_integrations.backends.pool import backend_of
from eft_integrations.langchain import EFTChatModel
from eft_integrations.llama_index import EFTLLM
from eft_integrations.wire.reasoning import effort_of
from tests.integrations.server.serving import events_of, make_app

MAX_TOKENS = 200

OpenAIMessage = Mapping[str, Any]
"""A message in OpenAI's form."""

Broken = tuple[str | None, str | None, str]
"""A call that is none: its name and id where they are known, and what was written of its arguments, or else of all of it."""


@dataclass(frozen=True)
class Call:
    """A call as a caller gets it."""

    call_id: str
    name: str
    arguments: Mapping[str, Any]

    def as_openai(self) -> dict[str, Any]:
        """OpenAI's form, as an agent sends it back."""
        function = {"name": self.name, "arguments": json.dumps(self.arguments, ensure_ascii=False)}
        return {"id": self.call_id, "type": "function", "function": function}


@dataclass(frozen=True)
class Answer:
    """What a caller sees of an answer. `metadata` is what the package reports of it, `invalid` are calls that are none."""

    text: str
    calls: tuple[Call, ...]
    finish_reason: str
    metadata: Mapping[str, Any]
    reasoning: str = ""
    invalid: tuple[Broken, ...] = ()
    reasoning_tokens: int = 0

    @property
    def content(self) -> tuple[str, list[tuple[str, Mapping[str, Any]]], str]:
        """Words, calls and why it ended: without thoughts, ids and reports."""
        return self.text, [(call.name, dict(call.arguments)) for call in self.calls], self.finish_reason

    @property
    def everything(self) -> tuple[object, ...]:
        """All but ids and reports: what is the same in every way of asking."""
        return *self.content, self.reasoning, [(name, written) for name, _, written in self.invalid]

    def as_openai(self) -> dict[str, Any]:
        """The assistant's turn in OpenAI's form."""
        turn: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        turn |= {"reasoning_content": self.reasoning} if self.reasoning else {}
        return turn | ({"tool_calls": [call.as_openai() for call in self.calls]} if self.calls else {})


@dataclass(frozen=True)
class Question:
    """What is asked, in OpenAI's terms. `parallel` None: not said. `reasoning` and `reasoning_budget` as in `ChatRequest`."""

    messages: Sequence[OpenAIMessage]
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: Any = None
    parallel: bool | None = None
    response_format: Mapping[str, Any] | None = None
    reasoning: str | None = None
    reasoning_budget: int | None = None

    def keywords(self, *, tools: bool = True) -> dict[str, Any]:
        """What was said beside the messages."""
        said: dict[str, Any] = {
            "tools": list(self.tools) if tools else None,
            "tool_choice": self.tool_choice,
            "parallel_tool_calls": self.parallel,
            "response_format": self.response_format,
            "reasoning": self.reasoning,
            "reasoning_budget": self.reasoning_budget,
        }
        return {name: value for name, value in said.items() if value not in (None, [])}

    def body(self) -> dict[str, Any]:
        """The same as fields of a request to the server."""
        said = self.keywords()
        if (reasoning := said.pop("reasoning", None)) is not None:
            said["reasoning_effort"] = effort_of(reasoning)
        if (budget := said.pop("reasoning_budget", None)) is not None:
            said["eft_reasoning_budget"] = budget
        return said


class Adapter(Protocol):
    """One way of asking."""

    def ask(self, question: Question, *, stream: bool) -> Answer:
        """The answer, whole or put together from a stream."""


class LangChainAdapter:
    """`EFTChatModel`."""

    def __init__(self, engine: Any) -> None:
        self._model = EFTChatModel(engine=engine, max_tokens=MAX_TOKENS, seed=0)

    def ask(self, question: Question, *, stream: bool) -> Answer:
        """See `Adapter`."""
        messages = convert_to_messages(list(question.messages))
        keywords = question.keywords()
        if not stream:
            return _of_langchain(self._model.invoke(messages, **keywords))
        whole = AIMessageChunk(content="")
        for chunk in self._model.stream(messages, **keywords):
            whole += chunk
        return _of_langchain(whole)


def _of_langchain(message: AIMessage) -> Answer:
    calls = tuple(Call(call["id"] or "", call["name"], call["args"]) for call in message.tool_calls)
    metadata = message.response_metadata["eft"]
    invalid = _invalid(metadata)
    told = [(own["name"], own["id"], own["args"] or "") for own in message.invalid_tool_calls]
    assert [own[:2] for own in told] == [own[:2] for own in invalid], "LangChain's own field tells what the report does"
    assert all(own[2].startswith(exact[2]) for own, exact in zip(told, invalid, strict=True))
    return Answer(
        str(message.content),
        calls,
        message.response_metadata["finish_reason"],
        metadata,
        message.additional_kwargs.get("reasoning_content", ""),
        invalid,
        (message.usage_metadata or {}).get("output_token_details", {}).get("reasoning", 0),
    )


def _invalid(report: Mapping[str, Any]) -> tuple[Broken, ...]:
    """Calls that are none, as the package reports them."""
    return tuple(
        (own.get("name"), own.get("call_id"), own["arguments"] if "arguments" in own else own["text"])
        for own in report.get("invalid_tool_calls", ())
    )


class LlamaIndexAdapter:
    """`EFTLLM`."""

    def __init__(self, engine: Any) -> None:
        self._llm = EFTLLM(engine=engine, max_tokens=MAX_TOKENS, seed=0)

    def ask(self, question: Question, *, stream: bool) -> Answer:
        """See `Adapter`."""
        messages = [_to_llama_index(message) for message in question.messages]
        if not stream:
            return _of_llama_index(self._llm.chat(messages, **question.keywords()))
        pieces, last = [], None
        for last in self._llm.stream_chat(messages, **question.keywords()):
            pieces.append(last.delta or "")
        assert last is not None
        answer = _of_llama_index(last)
        assert "".join(pieces) == answer.text, "the pieces of a stream are its text"
        return answer


def _to_llama_index(message: OpenAIMessage) -> ChatMessage:
    extra = {name: message[name] for name in ("tool_calls", "tool_call_id", "name") if message.get(name)}
    blocks = [TextBlock(text=message["content"] or "")]
    if thought := message.get("reasoning_content"):
        blocks = [ThinkingBlock(content=thought), *blocks]
    return ChatMessage(role=message["role"], blocks=blocks, additional_kwargs=extra)


def _of_llama_index(response: ChatResponse) -> Answer:
    blocks = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    calls = tuple(Call(own.tool_call_id or "", own.tool_name, _object(own.tool_kwargs)) for own in blocks)
    raw: Any = response.raw
    thoughts = [block.content or "" for block in response.message.blocks if isinstance(block, ThinkingBlock)]
    return Answer(
        response.message.content or "",
        calls,
        raw["choices"][0]["finish_reason"],
        raw["eft"],
        "".join(thoughts),
        _invalid(response.message.additional_kwargs),
        raw["usage"]["completion_tokens_details"]["reasoning_tokens"],
    )


def _object(arguments: Mapping[str, Any] | str) -> Mapping[str, Any]:
    return json.loads(arguments) if isinstance(arguments, str) else arguments


class ServerAdapter:
    """The server's application over HTTP."""

    def __init__(self, engine: Any) -> None:
        app = make_app({"family": backend_of(engine)})
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    def ask(self, question: Question, *, stream: bool) -> Answer:
        """See `Adapter`."""
        body = {
            "model": "family",
            "messages": list(question.messages),
            "max_tokens": MAX_TOKENS,
            "seed": 0,
            "stream": stream,
            **({"stream_options": {"include_usage": True}} if stream else {}),
            **question.body(),
        }
        response = asyncio.run(self._post(body))
        assert response.status_code == 200, response.text
        if stream:
            return _of_events([json.loads(event) for event in events_of(response.text) if event != "[DONE]"])
        reply = response.json()
        choice, metadata = reply["choices"][0], reply["eft"]["choices"][0]
        calls = [
            Call(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in choice["message"].get("tool_calls") or ()
        ]
        return Answer(
            choice["message"]["content"] or "",
            tuple(calls),
            choice["finish_reason"],
            metadata,
            choice["message"].get("reasoning_content") or "",
            _invalid(metadata),
            reply["usage"]["completion_tokens_details"]["reasoning_tokens"],
        )

    async def _post(self, body: Mapping[str, Any]) -> httpx.Response:
        async with httpx.AsyncClient(transport=self._transport, base_url="http://localhost") as client:
            return await client.post("/v1/chat/completions", json=body)


def _of_events(events: Sequence[Mapping[str, Any]]) -> Answer:
    text, reasoning, finish_reason, metadata = "", "", "", {}
    calls: dict[int, dict[str, str]] = {}
    *pieces, counts = events
    for event in pieces:
        assert "error" not in event, event
        choice = event["choices"][0]
        text += choice["delta"].get("content") or ""
        reasoning += choice["delta"].get("reasoning_content") or ""
        for piece in choice["delta"].get("tool_calls") or ():
            if "id" in piece:
                calls[piece["index"]] = {"id": piece["id"], "name": piece["function"]["name"], "arguments": ""}
            calls[piece["index"]]["arguments"] += piece["function"].get("arguments") or ""
        finish_reason = choice["finish_reason"] or finish_reason
        metadata = event["eft"]["choices"][0] if "eft" in event else metadata
    invalid = _invalid(metadata)
    broken = {call_id: (name, written) for name, call_id, written in invalid}
    for own in [own for own in calls.values() if own["id"] in broken]:
        name, written = broken[own["id"]]
        assert own["name"] == name
        assert own["arguments"].startswith(written)
        assert not _is_mendable(own["arguments"]), "a client that does not read the report would run it"
    return Answer(
        text,
        tuple(
            Call(own["id"], own["name"], json.loads(own["arguments"]))
            for own in calls.values()
            if own["id"] not in broken
        ),
        finish_reason,
        metadata,
        reasoning,
        invalid,
        counts["usage"]["completion_tokens_details"]["reasoning_tokens"],
    )


def _is_mendable(text: str) -> bool:
    """Whether a client that mends JSON which breaks off, as LangChain does, finds an object in this."""
    try:
        return isinstance(parse_partial_json(text), dict)
    except ValueError:
        return False


ADAPTERS = {"langchain": LangChainAdapter, "llama_index": LlamaIndexAdapter, "server": ServerAdapter}
