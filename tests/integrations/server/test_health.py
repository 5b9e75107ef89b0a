"""/health fails when an engine is dead, /ready whenever requests would not be answered; both say which engine and why."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from eft_engine import Engine, SamplingParams, errors
from eft_engine.models.network import Block
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.remote import RemoteBackend
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.server.app import app_of
from eft_integrations.server.compositions import Composition
from eft_integrations.server.seen import health
from eft_integrations.server.service import Service
from eft_integrations.server.settings import ServerSettings
from tests.engine.gate import Gate
from tests.integrations.server.serving import in_process, running
from tests.toy import make_trio

SHORT = {"model": "m", "prompt": "abc", "max_tokens": 2}


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine that a test may break."""
    with make_trio("llama").engine() as engine:
        yield engine


async def asked(client: httpx.AsyncClient, path: str) -> tuple[int, Any]:
    """Status and body; HEAD says the same without one."""
    response, head = await client.get(path), await client.head(path)
    assert head.status_code == response.status_code
    return response.status_code, response.json()


def found(status: str, reason: str, engine: str | None = "m") -> tuple[int, Any]:
    """What is answered when something is wrong."""
    return 503, {"status": status, "findings": [{"engine": engine, "reason": reason}]}


async def test_all_is_well_and_no_key_is_asked_for(engine: Engine) -> None:
    async with in_process({"m": backend_of(engine)}, ServerSettings(api_key="secret")) as client:
        assert await asked(client, "/health") == (200, {"status": "ok"})
        assert await asked(client, "/ready") == (200, {"status": "ready"})
        assert (await client.get("/v1/models")).status_code == 401


async def test_engine_whose_thread_has_ended_is_dead(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(blocks: list[Block]) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(engine._trio.networks[0], "forward", forward)
    reason = "the thread of the engine has ended (SystemExit)"
    async with in_process({"m": backend_of(engine), "other": ScriptedBackend([])}) as client:
        assert (await client.post("/v1/completions", json=SHORT)).status_code == 503
        assert await asked(client, "/health") == found("not ok", reason)
        assert await asked(client, "/ready") == found("not ready", reason)
        assert (await client.post("/v1/completions", json=SHORT)).status_code == 503
        assert 'eft_engine_alive{engine="m"} 0.0' in (await client.get("/metrics")).text


async def test_closed_engine_is_dead_and_metrics_go_on(engine: Engine) -> None:
    async with in_process({"m": backend_of(engine)}) as client:
        engine.close()
        assert await asked(client, "/health") == found("not ok", "the engine was closed")
        assert await asked(client, "/ready") == found("not ready", "the engine was closed")
        text = (await client.get("/metrics")).text
    assert 'eft_engine_alive{engine="m"} 0.0' in text
    assert "eft_ready 0.0" in text


async def test_step_that_hangs_makes_the_server_unready_and_leaves_it_alive(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, engine._trio.networks[0])
    stream = engine.stream("abc", sampling=SamplingParams(max_tokens=2))
    assert await asyncio.to_thread(gate.reached.wait, 30)
    async with (
        in_process({"m": backend_of(engine)}, ServerSettings(stall_timeout_s=0.01)) as client,
        in_process({"m": backend_of(engine)}) as patient,
        in_process({"m": backend_of(engine)}, ServerSettings(stall_timeout_s=None)) as endless,
    ):
        while engine.health().seconds_since_progress <= 0.01:
            await asyncio.sleep(0.001)
        assert await asked(client, "/ready") == found(
            "not ready", "the engine has worked for more than 0.01 s without ending a pass"
        )
        assert await asked(client, "/health") == (200, {"status": "ok"})
        assert await asked(patient, "/ready") == await asked(endless, "/ready") == (200, {"status": "ready"})
        gate.open()
        list(stream)
        while engine.health().step_s is not None:
            await asyncio.sleep(0.001)
        assert await asked(client, "/ready") == (200, {"status": "ready"})


async def test_engine_that_is_busy_is_ready_while_it_gets_on(engine: Engine) -> None:
    """All the time that an engine works, and however long: only a pass that does not end is a hang."""
    with running({"m": backend_of(engine)}, ServerSettings(stall_timeout_s=5.0)) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            working = asyncio.create_task(client.post("/v1/completions", json={**SHORT, "max_tokens": 100, "n": 2}))
            statuses = set()
            while not working.done():
                statuses.add((await client.get("/ready")).status_code)
                statuses.add((await client.get("/health")).status_code)
            assert (await working).status_code == 200
    assert statuses == {200}


async def test_engine_that_is_not_loaded_is_not_ready_and_is_not_loaded_by_asking() -> None:
    backend = EngineBackend(lambda: pytest.fail("nobody wanted it"), model_name="m")
    async with in_process([Composition("m", backend, {"chat": 1.0})]) as client:
        assert await asked(client, "/health") == (200, {"status": "ok"})
        assert await asked(client, "/ready") == found("not ready", "the engine is not loaded")
        assert (await client.get("/metrics")).status_code == 200


async def test_server_that_drains_is_not_ready() -> None:
    service = Service.of([Composition.of("m", ScriptedBackend([]))], ServerSettings())
    transport = httpx.ASGITransport(app_of(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/ready")).status_code == 200
        service.health.drain()
        assert await asked(client, "/ready") == found("not ready", "the server is shutting down", engine=None)
        assert await asked(client, "/health") == (200, {"status": "ok"})


async def test_probe_that_says_no_is_no_failure() -> None:
    service = Service.of([Composition.of("m", ScriptedBackend([]))], ServerSettings())
    service.health.drain()
    transport = httpx.ASGITransport(app_of(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/ready")).status_code == 503
        told = (await client.get("/metrics")).text
    assert 'eft_http_requests_total{path="/ready",status="503"} 1.0' in told
    assert "eft_errors_total{" not in told


async def test_other_server_is_asked_now_and_then(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    num_asked = 0
    original = RemoteBackend.check_ready

    def counted(self: RemoteBackend, *, timeout_s: float) -> None:
        nonlocal num_asked
        num_asked += 1
        original(self, timeout_s=timeout_s)

    monkeypatch.setattr(RemoteBackend, "check_ready", counted)
    reason = "the server that holds the model is not ready"
    with running({"m": backend_of(engine)}) as url:
        backend = RemoteBackend(f"{url}/v1")
        async with in_process([Composition("m", backend, {"chat": 1.0})]) as client:
            for _ in range(3):
                assert await asked(client, "/ready") == (200, {"status": "ready"})
            assert num_asked == 1, "what was heard a moment ago is believed"
            engine.close()
            assert await asked(client, "/ready") == (200, {"status": "ready"})
            monkeypatch.setattr(health, "PROBED_FOR_S", 0.0)
            assert await asked(client, "/ready") == found("not ready", reason)
            assert await asked(client, "/health") == (200, {"status": "ok"}), "nothing here is dead"
    async with in_process([Composition("m", backend, {"chat": 1.0})]) as client:
        assert await asked(client, "/ready") == found("not ready", reason)
        body = (await client.get("/ready")).text
        assert url.removeprefix("http://") not in body
        assert "eft_ready 0.0" in (await client.get("/metrics")).text


def test_server_without_a_word_for_it_is_ready_while_it_is_healthy() -> None:
    with running({"m": ScriptedBackend([])}) as url:
        backend = RemoteBackend(f"{url}/v1/x")  # there, /v1/x/ready is not known
        with pytest.raises(errors.RemoteServerError, match="404"):
            backend.check_ready(timeout_s=5.0)
        RemoteBackend(f"{url}/v1").check_ready(timeout_s=5.0)


def test_server_that_hangs_says_nothing_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections and never answers
        backend = RemoteBackend(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        began = time.monotonic()
        with pytest.raises(errors.RemoteServerError):
            backend.check_ready(timeout_s=0.1)
        assert time.monotonic() - began < 30
