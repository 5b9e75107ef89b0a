"""What stands around every request: keys, sizes, times, a full queue, clients that leave; over real connections."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from eft_engine import Engine
from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.request import ChatDelta, ChatRequest
from eft_integrations.server.callers.pace import Pace
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.serving import events_of, in_process, running
from tests.toy import make_trio

HELLO = [{"role": "user", "content": "hi"}]
LONG: dict[str, Any] = {"model": "m", "prompt": "abc", "max_tokens": 3000, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """One request runs, one may wait."""
    with make_trio("llama", context_len=4096).engine(max_num_seqs=1, max_queued_requests=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    """A server of that engine."""
    with running({"m": backend_of(engine)}) as url:
        yield url


async def until(engine: Engine, fact: Callable[[Any], bool]) -> None:
    """Wait for the engine's statistics to show something; the test's own time limit ends it otherwise."""
    while not fact(engine.stats()):
        await asyncio.sleep(0.01)


async def first_event(stream: AsyncIterator[str]) -> Any:
    """The first event of a stream."""
    async for line in stream:
        if line.startswith("data: "):
            return json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream ended before its first event")


# ---- clients that leave --------------------------------------------------------------------------------------------------


async def test_client_that_leaves_a_stream_frees_its_slot(engine: Engine, url: str) -> None:
    cancelled = engine.stats().num_cancelled
    async with (
        httpx.AsyncClient(base_url=url) as client,
        client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response,
    ):
        lines = response.aiter_lines()
        await first_event(lines)
        assert engine.stats().num_running == 1
    await until(engine, lambda stats: stats.num_cancelled == cancelled + 1 and stats.num_running == 0)


async def test_client_that_leaves_while_it_waits_for_a_whole_answer_frees_its_slot(engine: Engine, url: str) -> None:
    cancelled = engine.stats().num_cancelled
    async with httpx.AsyncClient(base_url=url) as client:
        asking = asyncio.create_task(client.post("/v1/completions", json=LONG))
        await until(engine, lambda stats: stats.num_running == 1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await until(engine, lambda stats: stats.num_cancelled == cancelled + 1 and stats.num_running == 0)


async def test_connection_that_is_reset_frees_its_slot(engine: Engine, url: str) -> None:
    cancelled = engine.stats().num_cancelled
    body = json.dumps({**LONG, "stream": True}).encode()
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    await asyncio.to_thread(connection.sendall, head.encode() + body)
    await asyncio.to_thread(connection.recv, 100)
    connection.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
    )  # closing resets, as a killed client does
    connection.close()
    await until(engine, lambda stats: stats.num_cancelled == cancelled + 1 and stats.num_running == 0)


async def test_leaving_one_of_n_answers_cancels_all_of_them() -> None:
    with (
        make_trio("llama", context_len=4096).engine(max_num_seqs=4) as engine,
        running({"m": backend_of(engine)}) as url,
    ):
        asked = {**LONG, "n": 3, "stream": True}
        async with (
            httpx.AsyncClient(base_url=url) as client,
            client.stream("POST", "/v1/completions", json=asked) as response,
        ):
            await first_event(response.aiter_lines())
        await until(engine, lambda stats: stats.num_cancelled == 3 and stats.num_running == 0)


# ---- a full queue and the time limit -------------------------------------------------------------------------------------


async def test_full_queue_is_429_with_retry_after_and_what_waits_is_answered(engine: Engine, url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        async with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as running_one:
            lines = running_one.aiter_lines()  # kept: an iterator that is dropped closes the connection
            await first_event(lines)
            waiting = asyncio.create_task(client.post("/v1/completions", json={**LONG, "max_tokens": 2}))
            await until(engine, lambda stats: stats.num_waiting == 1)
            refused = await client.post("/v1/completions", json=LONG)
            refused_stream = await client.post("/v1/completions", json={**LONG, "stream": True})
        answered = await waiting
    assert answered.json()["usage"]["completion_tokens"] == 2
    for response in (refused, refused_stream):
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(response.headers["retry-after"]) <= 60


async def test_n_answers_of_which_one_finds_no_room_leave_nothing_behind(engine: Engine, url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        refused = await client.post("/v1/completions", json={**LONG, "n": 8})
    assert refused.status_code == 429
    await until(engine, lambda stats: stats.num_running == stats.num_waiting == 0)


async def test_answer_that_takes_too_long_is_cancelled_and_says_so() -> None:
    closed: list[str] = []

    class Endless(ScriptedBackend):
        """Gives one word and then nothing."""

        async def astream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
            try:
                if request.prompt == "stream":
                    yield ChatDelta(text="word")
                await asyncio.Event().wait()
            finally:
                closed.append(str(request.prompt))

    async with in_process({"m": Endless([])}, ServerSettings(request_timeout_s=1.0)) as client:
        whole = await client.post("/v1/completions", json={"model": "m", "prompt": "whole"})
        streamed = await client.post("/v1/completions", json={"model": "m", "prompt": "stream", "stream": True})
    assert whole.status_code == 504
    assert whole.json()["error"]["code"] == "request_timeout"
    assert whole.headers["x-should-retry"] == "false"
    assert streamed.status_code == 200
    assert '"code":"request_timeout"' in events_of(streamed.text)[-1]
    assert closed == ["whole", "stream"]


def test_pace_follows_what_requests_take() -> None:
    pace = Pace(max_num_seqs=1)
    assert pace.retry_after_s(0) == 1
    pace.note(20.0)
    assert pace.retry_after_s(2) == 40
    assert pace.retry_after_s(100) == 60
    for _ in range(100):
        pace.note(0.1)
    assert pace.retry_after_s(2) == 1


# ---- keys and sizes ------------------------------------------------------------------------------------------------------


async def test_key_is_asked_for_everywhere_but_at_health() -> None:
    settings = ServerSettings(api_key="one,two")
    async with in_process({"m": ScriptedBackend(["ok"] * 2)}, settings) as client:
        for key in ("one", "two"):
            headers = {"Authorization": f"Bearer {key}"}
            response = await client.post(
                "/v1/chat/completions", json={"model": "m", "messages": HELLO}, headers=headers
            )
            assert response.status_code == 200
        for headers in (
            {},
            {"Authorization": "Bearer three"},
            {"Authorization": "Basic one"},
            {"Authorization": "one"},
        ):
            response = await client.get("/v1/models", headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/openapi.json")).status_code == 401
        assert (await client.get("/health")).json() == {"status": "ok"}


async def test_body_of_ten_megabytes_is_refused_with_and_without_its_length_told() -> None:
    body = b'{"model": "m", "prompt": "' + b"a" * 10_000_000 + b'"}'

    async def in_pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    json_type = {"Content-Type": "application/json"}
    with running({"m": ScriptedBackend([])}) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            told = await client.post("/v1/completions", content=body, headers=json_type)
            untold = await client.post("/v1/completions", content=in_pieces(), headers=json_type)
            after = await client.get("/health")
    for response in (told, untold):
        assert response.status_code == 413
        assert "larger than 8388608 bytes" in response.json()["error"]["message"]
    assert after.status_code == 200


# ---- what can be seen ----------------------------------------------------------------------------------------------------


async def test_metrics_show_queue_batch_times_tokens_acceptance_and_cache(engine: Engine) -> None:
    async with in_process({"m": backend_of(engine)}) as client:
        await client.post("/v1/completions", json={**LONG, "max_tokens": 5})
        await client.get("/nowhere")
        await client.get("/openapi.json")
        text = (await client.get("/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['eft_completion_tokens_total{engine="m"}']) >= 5
    assert float(values['eft_kv_cache_bytes{engine="m"}']) > 0
    assert values['eft_time_to_first_token_seconds_count{model="m"}'] == "1.0"
    assert values['eft_time_per_output_token_seconds_count{model="m"}'] == "1.0"
    assert values['eft_queue_seconds_count{model="m"}'] == "1.0"
    assert values['eft_http_requests_total{path="/v1/completions",status="200"}'] == "1.0"
    assert values['eft_http_requests_total{path="other",status="404"}'] == "1.0"
    assert values['eft_http_requests_total{path="/openapi.json",status="200"}'] == "1.0"
    for name in ("requests_running", "requests_waiting", "draft_acceptance_ratio", "drafted_tokens_total"):
        assert f'eft_{name}{{engine="m"}}' in values
