"""Requests that are wrong in every way that came to mind are answered as OpenAI would, and harm nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from eft_engine import Engine
from eft_integrations.backends.pool import backend_of
from tests.integrations.server.faults import FAULTS, Fault, chat
from tests.integrations.server.serving import running
from tests.toy import make_trio


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A small engine."""
    with make_trio("llama", context_len=512).engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    """A running server of it."""
    with running({"m": backend_of(engine)}) as url:
        yield url


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_fault_is_answered_and_the_next_request_is_too(fault: Fault, url: str, engine: Engine) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        response = await fault.send(client)
        assert response.status_code == fault.status, response.text[:500]
        if fault.status != 200:
            error = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == fault.code
            assert len(error["message"]) < 2000
        assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
    while engine.stats().num_running or engine.stats().num_waiting:  # a slot is given back in the step after an answer
        await asyncio.sleep(0.01)
