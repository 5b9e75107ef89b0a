"""/metrics: what is counted, how often, and under how many labels."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from eft_engine import Engine, errors
from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.remote import RemoteBackend
from eft_integrations.backends.scripted import Broken, ScriptedBackend
from eft_integrations.server.compositions import Composition
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.serving import in_process, running
from tests.toy import make_trio

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
DOCUMENT = Path(__file__).parents[3] / "docs" / "server_operations.md"
KEYS = {"keys": [{"name": "alice", "key": "a"}, {"name": "bob", "key": "b", "max_requests": 1}]}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A small engine."""
    with make_trio("llama").engine() as engine:
        yield engine


def text(**fields: Any) -> dict[str, Any]:
    """A small request."""
    return {"model": "m", "prompt": "abc", "max_tokens": 3, "ignore_eos": True, **fields}


async def sampled(client: httpx.AsyncClient, **headers: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Values by name and the values of the labels, which come in the order of their names."""
    response = await client.get("/metrics", headers=headers)
    assert response.status_code == 200
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_whole_answers_are_counted_by_caller_model_and_weight(engine: Engine) -> None:
    async with in_process({"m": backend_of(engine)}, ServerSettings.model_validate(KEYS)) as client:
        for _ in range(2):
            await client.post(TEXT, json=text(eft_reward_weights=0.5, n=2), headers={"x-api-key": "a"})
        values = await sampled(client, **{"x-api-key": "a"})
    assert values["eft_caller_answers_total", ("alice", "m", "finished")] == 4
    assert values["eft_caller_completion_tokens_total", ("alice", "m")] == 12
    assert values["eft_caller_prompt_tokens_total", ("alice", "m")] > 0
    assert values["eft_request_completion_tokens_sum", ("m",)] == 12
    assert values["eft_reward_weight_count", ("m", "chat")] == 4
    assert values["eft_reward_weight_sum", ("m", "chat")] == 2.0
    for name in ("queue_seconds", "time_to_first_token_seconds", "time_per_output_token_seconds", "request_seconds"):
        assert values[f"eft_{name}_count", ("m",)] == 4
    assert values["eft_answer_acceptance_ratio_count", ("m",)] == 4
    assert values["eft_http_request_seconds_count", (TEXT,)] == 2
    assert values["eft_http_requests_in_flight", ()] == 1, "this one"
    assert values["eft_engine_alive", ("m",)] == values["eft_ready", ()] == 1
    assert values["process_resident_memory_bytes", ()] > 0
    assert any(name == "python_gc_collections_total" for name, _ in values)


async def test_refusals_are_counted_by_their_reason(engine: Engine) -> None:
    async with in_process({"m": backend_of(engine)}, ServerSettings.model_validate(KEYS)) as client:
        alice, bob = {"x-api-key": "a"}, {"x-api-key": "b"}
        await client.post(TEXT, json=text(eft_reward_weights=-1), headers=alice)
        await client.post(TEXT, json=text(n=2), headers=bob)
        await client.post(TEXT, json=text())
        await client.post(TEXT, content=b"{", headers=alice)
        await client.post(TEXT, json=text(model="x"), headers=alice)
        values = await sampled(client, **alice)
    refused = {labels: value for (name, labels), value in values.items() if name == "eft_refused_total"}
    assert refused == {
        ("weight_forbidden", "403"): 1,
        ("too_many_answers", "400"): 1,
        ("invalid_api_key", "401"): 1,
        ("invalid_json", "400"): 1,
        ("model_not_found", "404"): 1,
    }
    assert values["eft_caller_answers_total", ("bob", "m", "refused")] == 2
    assert values["eft_http_requests_total", (TEXT, "401")] == 1


async def test_failures_are_counted_by_type_whole_and_inside_streams() -> None:
    replies = [
        errors.StepOutOfMemoryError("no memory"),
        IndexError("lost"),
        Broken("one two", errors.RemoteServerError("http://inside", status=None), after=1),
        Broken("one two", IndexError("lost"), after=1),
    ]
    asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    async with in_process({"m": ScriptedBackend(replies)}) as client:
        statuses = [(await client.post(CHAT, json={**asked, "stream": number > 0})).status_code for number in range(4)]
        values = await sampled(client)
    assert statuses == [503, 500, 200, 200]
    counted = {labels: value for (name, labels), value in values.items() if name == "eft_errors_total"}
    assert counted == {
        ("out_of_memory", "StepOutOfMemoryError"): 1,
        ("none", "unforeseen"): 2,
        ("upstream_failed", "RemoteServerError"): 1,
    }
    assert values["eft_stream_failures_total", (CHAT, "RemoteServerError")] == 1
    assert values["eft_stream_failures_total", (CHAT, "unforeseen")] == 1
    by_status = {labels[1]: value for (name, labels), value in values.items() if name == "eft_http_requests_total"}
    assert by_status == {"503": 1, "500": 2, "502": 1}, "none of them was answered"
    assert values["eft_caller_answers_total", ("anybody", "m", "failed")] == 4


async def test_client_that_leaves_is_counted_as_such(engine: Engine) -> None:
    with running({"m": backend_of(engine)}) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            asked = text(max_tokens=200, stream=True, n=8)
            async with client.stream("POST", TEXT, json=asked) as response:
                lines = response.aiter_lines()  # kept: an iterator that is dropped closes the connection
                await anext(lines)
                assert (await sampled(client))["eft_caller_answers_in_hand", ("anybody", "m")] == 8
            async with asyncio.timeout(30):
                while ("eft_http_requests_total", (TEXT, "499")) not in (values := await sampled(client)):
                    await asyncio.sleep(0.01)
    assert values["eft_caller_answers_total", ("anybody", "m", "left")] > 0
    assert not any(name == "eft_stream_failures_total" for name, _ in values)


async def test_nothing_that_a_client_sends_becomes_a_label(engine: Engine) -> None:
    async with in_process({"m": backend_of(engine)}) as client:
        before = set(await sampled(client))
        for number in range(20):
            await client.get(f"/secret-{number}", headers={"X-Request-Id": f"secret-{number}"})
            await client.post(TEXT, json=text(model=f"secret-{number}"))
            await client.post(TEXT, json=text(model=f"m@secret-{number}=1"))
            await client.post(TEXT, json=text(eft_reward_weights={f"secret-{number}": 1}))
            await client.request(f"SECRET{number}", TEXT)
        after = await sampled(client)
    assert not [labels for _, labels in after if any("secret" in label.lower() for label in labels)]
    assert len(set(after) - before) < 100, "as many rows as for one of each"


async def test_other_server_that_does_not_answer_takes_nothing_else_away(engine: Engine) -> None:
    there = backend_of(engine)
    lost = RemoteBackend("http://127.0.0.1:9/v1")
    async with in_process([Composition.of("m", there), Composition("far", lost, {"chat": 1.0})]) as client:
        values = await sampled(client)
    assert ("eft_requests_running", ("m",)) in values
    assert ("eft_requests_running", ("far",)) not in values


async def test_metrics_need_a_key_unless_the_operator_says_otherwise() -> None:
    for without, status in ((False, 401), (True, 200)):
        settings = ServerSettings(api_key="secret", metrics_without_key=without)
        async with in_process({"m": ScriptedBackend([])}, settings) as client:
            assert (await client.get("/metrics")).status_code == status
            assert (await client.get("/v1/models")).status_code == 401


async def test_document_lists_exactly_what_there_is(engine: Engine) -> None:
    async with in_process({"m": backend_of(engine)}) as client:
        exposed = (await client.get("/metrics")).text
    there = set(re.findall(r"^# TYPE (eft_\w+) (?:counter|gauge|histogram)$", exposed, re.MULTILINE))
    there = {name for name in there if not name.endswith("_created")}
    listed = re.findall(r"^\| `(eft_\w+)`", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(there)
