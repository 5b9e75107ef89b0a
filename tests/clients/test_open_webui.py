"""What Open WebUI 0.12.4 sends, and how it reads the answers.

It is in `routers/openai.py`, `routers/tasks.py` and `utils/middleware.py` of its package. The program itself (100 MB, with an
application's requirements) is not run: these are its requests, made by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

HALF = {"helpful": 0.5}
"""What its models' custom parameters hold; they are put into the body as they are."""
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer none", "X-OpenWebUI-User-Name": "Ada"}


@pytest.fixture
def client(base_url: str) -> Iterator[httpx.Client]:
    """A connection as its settings hold it: a URL without a slash at its end, and a key."""
    with httpx.Client(base_url=base_url, headers=HEADERS) as client:
        yield client


def lines(client: httpx.Client, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Events as its middleware reads them: lines that begin with `data:`, JSON until [DONE]."""
    with client.stream("POST", "chat/completions", content=json.dumps(body)) as response:
        assert "text/event-stream" in response.headers["Content-Type"]
        for line in response.iter_lines():
            if not line or line.isspace():
                continue
            assert line.startswith("data:")
            data = line[5:].strip()
            if data == "[DONE]":
                return
            yield json.loads(data)
    raise AssertionError("the stream has no [DONE]")


def test_models_are_listed_with_ids_and_no_error(client: httpx.Client) -> None:
    listed = client.get("models").json()
    assert "error" not in listed
    assert all(isinstance(model["id"], str) for model in listed["data"])
    assert "eft" in {model["id"] for model in listed["data"]}


def test_chat_is_streamed_with_usage_and_what_it_adds_changes_nothing(client: httpx.Client) -> None:
    body = {
        "stream": True,
        "model": "eft",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "stream_options": {"include_usage": True},
        "temperature": 0.8,
        "top_p": 0.9,
        "min_p": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": 128,
        "seed": 3,
        "stop": ["</end>"],
        "reasoning_effort": "medium",
        "eft_reward_weights": HALF,
    }
    events = list(lines(client, body))
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
    assert text == 'hi {"helpful": 0.5, "harmless": 0.3}'
    usage = events[-1]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    told = [event["eft"] for event in events if "eft" in event]
    assert "ignored" not in told[0]


def test_thoughts_come_in_the_field_that_it_shows(client: httpx.Client) -> None:
    events = list(lines(client, {"stream": True, "model": "thinker", "messages": [{"role": "user", "content": "hi"}]}))
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "I must look."


def test_tools_in_their_native_form_go_to_and_fro(client: httpx.Client) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look at a place.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    }
    body: dict[str, Any] = {
        "stream": True, "model": "eft", "messages": [{"role": "user", "content": "hi"}], "tools": [tool],
    }  # fmt: skip
    calls: dict[int, dict[str, Any]] = {}
    for event in lines(client, body):
        for delta in event["choices"][0]["delta"].get("tool_calls") or []:
            call = calls.setdefault(delta["index"], delta)
            if call is not delta:
                call["function"]["arguments"] += delta["function"]["arguments"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"place": "Paris"}
    answered = [
        *body["messages"],
        {"role": "assistant", "content": "", "tool_calls": list(calls.values())},
        {"role": "tool", "tool_call_id": calls[0]["id"], "content": [{"type": "input_text", "text": "sunny"}]},
    ]
    answered[-1]["content"] = "".join(part["text"] for part in answered[-1]["content"])  # so it flattens them
    events = list(lines(client, {**body, "messages": answered}))
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    assert text.startswith("sunny ")


@pytest.mark.parametrize("task", ["Create a concise title.", "Suggest 3 follow-up questions.", "Generate 1-3 tags."])
def test_tasks_are_plain_requests(client: httpx.Client, task: str) -> None:
    body = {
        "model": "eft",
        "messages": [{"role": "user", "content": task}],
        "stream": False,
        "max_completion_tokens": 50,
    }
    reply = client.post("chat/completions", content=json.dumps(body)).json()
    assert reply["choices"][0]["message"]["content"].startswith(task)


def test_responses_connections_work_too(client: httpx.Client) -> None:
    body = {
        "model": "eft",
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        "instructions": "Be brief.",
        "stream": False,
        "eft_reward_weights": HALF,
    }
    reply = client.post("responses", content=json.dumps(body)).json()
    assert reply["output"][0]["content"][0]["text"] == 'hi {"helpful": 0.5, "harmless": 0.3}'


def test_refusals_are_json_with_an_error_also_where_a_stream_was_asked_for(client: httpx.Client) -> None:
    body = {"stream": True, "model": "eft", "messages": [{"role": "user", "content": "hi"}], "eft_reward_weights": 9}
    refused = client.post("chat/completions", content=json.dumps(body))
    assert refused.status_code == 403
    assert "must be from 0 to 1.5 here" in refused.json()["error"]["message"]
