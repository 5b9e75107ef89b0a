"""Anthropic's API: shapes of messages, their events, errors and counts."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from eft_engine import errors
from eft_integrations.backends.replies import Reply
from eft_integrations.backends.scripted import Broken, Gate, Gated, ScriptedBackend
from eft_integrations.chat.messages import InvalidToolCall, Message, ToolCall
from eft_integrations.server.callers.callers import KeySettings
from eft_integrations.server.settings import ServerSettings
from tests.integrations.cuts import REASON, cut
from tests.integrations.server.serving import events_of, in_process, running
from tests.integrations.server.test_pings import OFTEN, Slow

HELLO = [{"role": "user", "content": "hello"}]
LOOK: dict[str, Any] = {
    "name": "look",
    "description": "Looks.",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}},
}
CALLS = Message("assistant", "I look.", (ToolCall("call_1", "look", '{"place": "Paris"}'),), reasoning="I must look.")
TORN = cut(Message("assistant", ""), InvalidToolCall('{"pl', REASON, "look", "call_1", '{"pl'))


def body(**fields: object) -> dict[str, object]:
    """A body."""
    return {"model": "toy", "max_tokens": 64, "messages": HELLO, **fields}


async def posted(
    reply: Reply,
    settings: ServerSettings | None = None,
    *,
    path: str = "/v1/messages",
    headers: dict[str, str] | None = None,
    **fields: object,
) -> tuple[Any, ScriptedBackend]:
    backend = ScriptedBackend(otherwise=reply)
    async with in_process({"toy": backend}, settings) as client:
        return await client.post(path, json=body(**fields), headers=headers), backend


async def test_message_has_a_thought_a_text_and_a_call() -> None:
    response, backend = await posted(CALLS, tools=[LOOK], tool_choice={"type": "any"}, eft_reward_weights=0.5)
    message = response.json()
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use"]
    assert message["content"][0]["signature"]
    assert message["content"][2] == {"type": "tool_use", "id": "call_1", "name": "look", "input": {"place": "Paris"}}
    assert (message["type"], message["role"], message["stop_reason"]) == ("message", "assistant", "tool_use")
    assert message["eft"]["reward_weights"] == {"scripted": 0.5}
    assert message["usage"]["output_tokens"] > 0
    assert backend.requests[0].tool_choice.mode == "required"
    assert response.headers["request-id"] == response.headers["x-request-id"]


async def test_events_are_those_of_the_whole_message() -> None:
    response, _ = await posted(CALLS, tools=[LOOK], stream=True)
    events = [json.loads(event) for event in events_of(response.text)]
    kinds = [event["type"] for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    blocks: dict[int, str] = {}
    started = {
        event["index"]: event["content_block"]["type"] for event in events if event["type"] == "content_block_start"
    }
    for event in events:
        if event["type"] == "content_block_delta":
            delta = event["delta"]
            piece = delta.get("text") or delta.get("thinking") or delta.get("partial_json") or ""
            blocks[event["index"]] = blocks.get(event["index"], "") + piece
    assert started == {0: "thinking", 1: "text", 2: "tool_use"}
    assert blocks == {0: "I must look.", 1: "I look.", 2: '{"place": "Paris"}'}
    assert kinds.count("content_block_stop") == 3
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["eft"]["reward_weights"] == {"scripted": 1.0}
    assert events[0]["message"]["usage"]["input_tokens"] == events[-2]["usage"]["input_tokens"] > 0
    assert "event: message_start\n" in response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_no_client_gets_a_part_of_a_call_that_is_none(stream: bool) -> None:
    response, _ = await posted(TORN, tools=[LOOK], stream=stream)
    assert "tool_use" not in response.text
    assert '"stop_reason":"max_tokens"' in response.text
    assert "invalid_tool_calls" in response.text


async def test_conversation_as_the_model_reads_it() -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "b"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "unsigned"},
                {"type": "tool_use", "id": "call_1", "name": "look", "input": {"place": "Paris"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "call_1",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no"}],
                },
                {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "d"}},
            ],
        },
    ]
    response, backend = await posted("ok", system=[{"type": "text", "text": "s"}], messages=turns, tools=[LOOK])
    assert "ignored" not in response.json()["eft"]
    assert backend.requests[0].messages == (
        Message("system", "s"),
        Message("user", "a\n\nb"),
        Message("assistant", "", (ToolCall("call_1", "look", '{"place": "Paris"}'),), reasoning="hm"),
        Message("tool", "Error: no", tool_call_id="call_1", name="look"),
        Message("user", "T\nd"),
    )


async def test_what_is_not_used_is_named() -> None:
    response, backend = await posted(
        "ok",
        tools=[LOOK | {"defer_loading": True}, {"type": "web_search_20250305", "name": "web_search"}],
        context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
        metadata={"user_id": "u"},
        thinking={"type": "enabled", "budget_tokens": 12},
    )
    assert response.json()["eft"]["ignored"] == [
        "context_management",
        "tools.defer_loading",
        "tools.web_search_20250305",
    ]
    assert [tool.name for tool in backend.requests[0].tools] == ["look"]
    assert (backend.requests[0].reasoning, backend.requests[0].reasoning_budget) == ("medium", 12)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"messages": [*HELLO, {"role": "assistant", "content": "The"}]}, "messages.1"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content.0"),
        ({"max_tokens": None}, "max_tokens"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"output_format": {"type": "xml"}}, "output_format"),
        ({"tools": [{"name": "look"}]}, "tools.0"),
        ({"eft_reward_weight": 1}, "eft_reward_weights"),
    ],
)
async def test_wrong_fields_are_told_in_anthropics_form(fields: dict[str, object], where: str) -> None:
    response, _ = await posted("ok", **fields)
    assert response.status_code == 400, response.text
    error = response.json()
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert where in error["error"]["message"]
    assert error["request_id"] == response.headers["request-id"]


async def test_refusals_of_every_layer_have_anthropics_form() -> None:
    settings = ServerSettings(keys=[KeySettings(name="a", key="k")], max_body_bytes=1024)
    key = {"x-api-key": "k"}
    found = {
        "authentication_error": await posted("ok", settings),
        "request_too_large": await posted("ok", settings, headers=key, system="x" * 2000),
        "not_found_error": await posted("ok", settings, headers=key, model="none"),
        "invalid_request_error": await posted("ok", settings, headers=key, path="/v1/messages/count_tokens", model=3),
    }
    for kind, (response, _) in found.items():
        assert response.json()["error"]["type"] == kind
    async with in_process({"toy": ScriptedBackend()}) as client:
        assert (await client.get("/v1/models/x", headers={"anthropic-version": "2023-06-01"})).json()["type"] == "error"
        assert "type" not in (await client.get("/v1/models/x")).json()


async def test_tokens_are_counted_and_a_schema_is_asked_for() -> None:
    backend = ScriptedBackend()
    schema = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
    async with in_process({"toy": backend}) as client:
        counted = await client.post("/v1/messages/count_tokens", json={"model": "toy", "messages": HELLO})
        asked = body(output_config={"format": {"type": "json_schema", "schema": schema}})
        reply = (await client.post("/v1/messages", json=asked)).json()
        models = (await client.get("/v1/models")).json()
    assert counted.json()["input_tokens"] > 0
    assert backend.requests[0].response_schema == schema
    assert isinstance(json.loads(reply["content"][0]["text"])["x"], bool)
    assert (models["has_more"], models["first_id"], models["data"][0]["type"]) == (False, "toy", "model")


# ---- streams -------------------------------------------------------------------------------------------------------------


def test_thoughts_and_text_are_sent_as_they_come() -> None:
    """What stands before the gate arrives while the rest of the answer does not exist yet."""
    gate = Gate()
    backend = ScriptedBackend(otherwise=Gated(CALLS, gate, after=4))
    with (
        running({"toy": backend}) as url,
        httpx.stream("POST", f"{url}/v1/messages", json=body(tools=[LOOK], stream=True), timeout=30) as response,
    ):
        kinds: list[str] = []
        lines = response.iter_lines()
        for line in lines:
            event = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            kinds += [event["delta"]["type"]] if event.get("type") == "content_block_delta" else []
            if "text_delta" in kinds:
                assert not gate.is_open
                gate.open()
                break
        assert kinds == ["thinking_delta"] * 3 + ["signature_delta", "text_delta"]
        assert "message_stop" in "".join(lines)


async def test_failure_in_the_middle_is_an_event_of_its_own() -> None:
    response, _ = await posted(Broken("one two three", errors.GenerationError("lost"), after=2), stream=True)
    assert response.status_code == 200
    last = json.loads(events_of(response.text)[-1])
    assert (last["type"], last["error"]["type"], last["error"]["message"]) == ("error", "api_error", "lost")
    assert response.text.rstrip().splitlines()[-2] == "event: error"
    assert "message_stop" not in response.text


async def test_pings_have_anthropics_form() -> None:
    async with in_process({"toy": Slow(silent_s=0.2)}, OFTEN) as client:
        response = await client.post("/v1/messages", json=body(stream=True))
    before, _, after = response.text.partition("event: message_start")
    assert before.count('event: ping\ndata: {"type":"ping"}\n\n') >= 2
    assert "ping" not in after


async def test_stop_sequence_is_told() -> None:
    async with in_process({"toy": ScriptedBackend(text="one two three")}) as client:
        whole = (await client.post("/v1/messages", json=body(stop_sequences=["two", "three"]))).json()
        streamed = await client.post("/v1/messages", json=body(stop_sequences=["none", "two"], stream=True))
    assert (whole["content"][0]["text"], whole["stop_reason"], whole["stop_sequence"]) == (
        "one ",
        "stop_sequence",
        "two",
    )
    deltas = [event["delta"] for event in map(json.loads, events_of(streamed.text)) if event["type"] == "message_delta"]
    assert deltas == [{"stop_reason": "stop_sequence", "stop_sequence": "two"}]


# ---- errors --------------------------------------------------------------------------------------------------------------

KEY = {"x-api-key": "k"}
GUARDED = ServerSettings(keys=[KeySettings(name="a", key="k", weight_policy=(0.0, 1.0))], max_body_bytes=4096)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    ("method", "headers", "content", "status", "kind"),
    [
        ("POST", {}, body(), 401, "authentication_error"),
        ("POST", {"authorization": "Bearer wrong"}, body(), 401, "authentication_error"),
        ("POST", KEY, body(system="x" * 5000), 413, "request_too_large"),
        ("POST", KEY, body(model="none"), 404, "not_found_error"),
        ("GET", KEY, None, 405, "invalid_request_error"),
        ("POST", KEY, "{", 400, "invalid_request_error"),
        ("POST", KEY, [], 400, "invalid_request_error"),
        ("POST", KEY, body(messages=3), 400, "invalid_request_error"),
    ],
)
async def test_refusals_of_both_routes(
    path: str, method: str, headers: dict[str, str], content: object, status: int, kind: str
) -> None:
    sent = content if isinstance(content, str) else None if content is None else json.dumps(content)
    async with in_process({"toy": ScriptedBackend()}, GUARDED) as client:
        response = await client.request(method, path, content=sent, headers=headers)
    said = response.json()
    assert (response.status_code, said["type"], said["error"]["type"]) == (status, "error", kind)
    assert said["error"]["message"]
    assert said["request_id"] == response.headers["request-id"] != ""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.GenerationError("lost"), 500, "api_error"),
        (errors.StepOutOfMemoryError("full"), 503, "overloaded_error"),
        (errors.EngineClosedError("closed"), 503, "overloaded_error"),
        (errors.RemoteServerError("away", status=500), 502, "api_error"),
        (ZeroDivisionError(), 500, "api_error"),
    ],
)
async def test_failures_before_the_first_event(error: Exception, status: int, kind: str, stream: bool) -> None:
    response, _ = await posted(error, stream=stream)
    assert (response.status_code, response.json()["error"]["type"]) == (status, kind)
    assert "request_id" in response.json()


async def test_full_queue_and_time_that_is_up() -> None:
    full, _ = await posted(errors.QueueFullError("full", num_queued=8, limit=8))
    assert (full.status_code, full.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(full.headers["retry-after"]) >= 1
    async with in_process({"toy": Slow(silent_s=30)}, ServerSettings(request_timeout_s=0.05)) as client:
        late = await client.post("/v1/messages", json=body())
    assert (late.status_code, late.json()["error"]["type"]) == (504, "timeout_error")
    assert late.headers["x-should-retry"] == "false"


# ---- clients such as Claude Code -----------------------------------------------------------------------------------------


async def test_what_claude_code_sends_is_answered_and_what_is_not_used_is_named() -> None:
    """A body as the client sends it, with a system's text of 100 KB."""
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    asked = body(
        system=[{"type": "text", "text": "word " * 20_000, **cached}, {"type": "text", "text": "brief"}],
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "<system-reminder>r</system-reminder>"},
                    {"type": "text", "text": "hello", **cached},
                ],
            },
            {"role": "system", "content": [{"type": "text", "text": "go on"}]},
            {"role": "user", "content": "now"},
        ],
        tools=[
            LOOK | cached | {"eager_input_streaming": True, "strict": True},
            LOOK
            | {
                "name": "later",
                "defer_loading": True,
                "input_examples": [{"place": "Paris"}],
                "allowed_callers": ["direct"],
            },
        ],
        metadata={"user_id": json.dumps({"session_id": "s"})},
        thinking={"type": "adaptive", "display": "omitted"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "high"},
        mcp_servers=[{"type": "url", "url": "https://example.com", "name": "m"}],
        container="c",
        stream=True,
    )
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219,effort-2025-11-24"}
    backend = ScriptedBackend(otherwise="ok", context_len=10**6)
    async with in_process({"toy": backend}) as client:
        response = await client.post("/v1/messages?beta=true", json=asked, headers=headers)
    assert response.status_code == 200, response.text
    (delta,) = [event for event in map(json.loads, events_of(response.text)) if event["type"] == "message_delta"]
    assert delta["eft"]["ignored"] == [
        "container",
        "context_management",
        "mcp_servers",
        "thinking.display",
        "tools.allowed_callers",
        "tools.defer_loading",
        "tools.input_examples",
    ]
    assert [turn.role for turn in backend.requests[0].messages] == ["system", "user", "system", "user"]
    assert (backend.requests[0].reasoning, backend.requests[0].tools[0].strict) == ("high", True)


async def test_citations_and_blocks_of_foreign_tools() -> None:
    document = {"type": "document", "citations": {"enabled": True}, "source": {"type": "text", "data": "d"}}
    told, _ = await posted("ok", messages=[{"role": "user", "content": [document]}])
    assert told.json()["eft"]["ignored"] == ["messages.content.citations"]
    foreign = [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}]
    refused, _ = await posted("ok", messages=[*HELLO, {"role": "assistant", "content": foreign}, *HELLO])
    assert refused.status_code == 400
    assert "server_tool_use" in refused.json()["error"]["message"]
