"""Pings while a stream has nothing to send, and what a failure is after one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai import APIError as OpenAIError
from openai import AsyncOpenAI, BadRequestError

from eft_engine.errors import GenerationError, InvalidOptionError
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.request import ChatDelta, ChatRequest
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.serving import events_of, in_process, running

HELLO = {"messages": [{"role": "user", "content": "a"}]}
OFTEN = ServerSettings(ping_interval_s=0.05)


class Slow(ScriptedBackend):
    """Is silent before the answer, and says an error in its place if it has one."""

    def __init__(self, *, silent_s: float, error: Exception | None = None) -> None:
        super().__init__(["one two"])
        self._silent_s, self._error = silent_s, error

    async def astream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
        await asyncio.sleep(self._silent_s)
        if self._error is not None:
            raise self._error
        async for delta in super().astream(request):
            yield delta


async def stream(
    backend: ScriptedBackend, settings: ServerSettings, path: str = "/v1/chat/completions", **body: Any
) -> httpx.Response:
    async with in_process({"m": backend}, settings) as client:
        return await client.post(path, json={"model": "m", "stream": True, **(body or HELLO)})


async def test_pings_come_until_there_is_something_to_send() -> None:
    response = await stream(Slow(silent_s=0.3), OFTEN)
    before, _, after = response.text.partition("data: ")
    assert before.count(": ping\n\n") >= 2
    assert ": ping" not in after
    assert events_of(response.text)[-1] == "[DONE]"


@pytest.mark.parametrize("interval_s", [None, 30.0])
async def test_no_ping_comes_without_an_interval_or_before_it(interval_s: float | None) -> None:
    response = await stream(Slow(silent_s=0.05), ServerSettings(ping_interval_s=interval_s))
    assert response.text.startswith("data: ")
    assert ": ping" not in response.text


async def test_failure_before_the_first_ping_has_a_status_and_one_behind_it_is_an_event() -> None:
    refusal = InvalidOptionError("not so", option="top_p")
    at_once = await stream(Slow(silent_s=0.0, error=refusal), OFTEN)
    assert (at_once.status_code, at_once.json()["error"]["param"]) == (400, "top_p")
    late = await stream(Slow(silent_s=0.3, error=refusal), OFTEN)
    assert late.status_code == 200
    assert [json.loads(event)["error"]["param"] for event in events_of(late.text)] == ["top_p"]


async def test_responses_tell_a_late_failure_in_their_own_event() -> None:
    late = await stream(Slow(silent_s=0.3, error=GenerationError("lost")), OFTEN, "/v1/responses", input="a")
    (event,) = map(json.loads, events_of(late.text))
    assert (event["type"], event["code"]) == ("error", "generation_failed")


async def test_openai_s_client_reads_over_pings_and_raises_what_comes_late() -> None:
    with running({"m": Slow(silent_s=0.3), "bad": Slow(silent_s=0.3, error=GenerationError("lost"))}, OFTEN) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            chunks = await client.chat.completions.create(
                model="m", stream=True, messages=[{"role": "user", "content": "a"}]
            )
            said = [chunk.choices[0].delta.content or "" async for chunk in chunks]
            assert "".join(said) == "one two"
            with pytest.raises(OpenAIError) as caught:
                async for _ in await client.chat.completions.create(
                    model="bad", stream=True, messages=[{"role": "user", "content": "a"}]
                ):
                    pass
            assert not isinstance(caught.value, BadRequestError)
