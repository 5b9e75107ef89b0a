"""Answers in OpenAI's form, as plain JSON, with our own numbers beside it under the key `eft`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eft_integrations.backend import ChatResult, TokenLogprobs
from eft_integrations.messages import ToolCall


def response_schema(response_format: Any) -> Mapping[str, Any] | None:
    """The JSON schema that a `response_format` asks for; None: free text.

    Raises:
        ValueError: it is none of OpenAI's forms.
    """
    match response_format:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema}}:
            return dict(schema)
        case {"type": "json_schema"}:
            raise ValueError(f"response_format json_schema needs json_schema.schema, got {response_format!r}")
    raise ValueError(f"response_format is a mapping of type text, json_object or json_schema, got {response_format!r}")


def completion(result: ChatResult, model_name: str) -> dict[str, Any]:
    """A whole answer as a chat completion; `eft` holds the weights in effect and what the request cost."""
    message: dict[str, Any] = {"role": "assistant", "content": result.content}
    if result.tool_calls:
        message["tool_calls"] = tool_calls(result.tool_calls)
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": result.finish_reason}
    if result.logprobs is not None:
        choice["logprobs"] = logprobs(result.logprobs)
    return {
        "object": "chat.completion",
        "model": model_name,
        "choices": [choice],
        "usage": {
            "prompt_tokens": result.usage.prompt_tokens,
            "completion_tokens": result.usage.completion_tokens,
            "total_tokens": result.usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": result.usage.cached_prompt_tokens},
        },
        "eft": dict(result.metadata),
    }


def tool_calls(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Calls of an assistant turn."""
    return [
        {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]


def logprobs(tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """Log-probabilities of the generated tokens; `eft` holds those of every member."""
    return {"content": [_logprob(token) for token in tokens]}


def _logprob(token: TokenLogprobs) -> dict[str, Any]:
    return {
        "token": token.token,
        "bytes": list(token.token.encode()),
        "logprob": token.logprob,
        "top_logprobs": [
            {"token": top.token, "bytes": list(top.token.encode()), "logprob": top.logprob} for top in token.top
        ],
        "eft": dict(token.members),
    }
