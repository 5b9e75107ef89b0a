"""Anthropic's own client for Python."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic, beta_tool

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
SAID = "Hello! How can I help?"
LOOK: Any = {
    "name": "look",
    "description": "Looks.",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}


def client_of(base_url: str) -> Anthropic:
    """A client; this one adds /v1 itself."""
    return Anthropic(base_url=base_url.removesuffix("/v1"), api_key="none", max_retries=0)


def test_whole_streamed_and_counted(base_url: str) -> None:
    asked: Any = {"model": "trio", "max_tokens": 64, "messages": HELLO}
    with client_of(base_url) as client:
        whole = client.messages.create(**asked, extra_body={"temperature": 0})
        assert whole.content[0].text == SAID
        assert whole.stop_reason == "end_turn"
        with client.messages.stream(**asked, extra_body={"temperature": 0}) as stream:
            assert "".join(stream.text_stream) == SAID
            streamed = stream.get_final_message()
        assert streamed.usage.output_tokens == whole.usage.output_tokens
        counted = client.messages.count_tokens(model="trio", messages=HELLO)
        assert counted.input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
        assert "trio" in [model.id for model in client.models.list()]
        weighed = client.messages.create(**asked, extra_body={"reward_weights": 0.5, "temperature": 0})
        assert weighed.model_extra["eft"]["reward_weights"] == {"chat": 0.5}
        stopped = client.messages.create(**asked, stop_sequences=["How"], extra_body={"temperature": 0})
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "How")


def test_thoughts_go_back_and_forth_with_calls(base_url: str) -> None:
    with client_of(base_url) as client:
        with client.messages.stream(model="thinker", max_tokens=64, messages=HELLO, tools=[LOOK]) as stream:
            first = stream.get_final_message()
        assert [block.type for block in first.content] == ["thinking", "tool_use"]
        assert first.content[1].input == {"place": "Paris"}
        result: Any = {"type": "tool_result", "tool_use_id": first.content[1].id, "content": "sunny"}
        turns: Any = [*HELLO, first.to_param(), {"role": "user", "content": [result]}]
        second = client.messages.create(model="thinker", max_tokens=64, messages=turns, tools=[LOOK])
        assert second.content[-1].text.startswith("sunny")


def test_tool_runner(base_url: str) -> None:
    @beta_tool
    def look(place: str) -> str:
        """Looks.

        Args:
            place: where.
        """
        return f"sunny in {place}"

    with client_of(base_url) as client:
        runner = client.beta.messages.tool_runner(model="tools", max_tokens=64, messages=HELLO, tools=[look])
        assert runner.until_done().content[0].text.startswith("sunny in Paris")


@pytest.mark.parametrize("model", ["cut", "late", "unfit"])
def test_calls_that_are_none_are_not_run(base_url: str, model: str) -> None:
    ran: list[str] = []

    @beta_tool
    def look(place: str) -> str:
        """Looks."""
        ran.append(place)
        return place

    with client_of(base_url) as client:
        asked: Any = {"model": model, "max_tokens": 64, "messages": HELLO, "tools": [look]}
        client.beta.messages.tool_runner(**asked).until_done()
        for stream in client.beta.messages.tool_runner(**asked, stream=True):
            stream.until_done()
    assert ran == []


async def test_async_client_and_typed_errors(base_url: str) -> None:
    address = base_url.removesuffix("/v1")
    async with AsyncAnthropic(base_url=address, api_key="none", max_retries=0) as client:
        raw = await client.messages.with_raw_response.create(model="trio", max_tokens=8, messages=HELLO)
        assert raw.headers["request-id"] == raw.headers["x-request-id"]
        with pytest.raises(anthropic.NotFoundError) as missing:
            await client.messages.create(model="nobody", max_tokens=8, messages=HELLO)
        assert missing.value.request_id
        assert missing.value.type == "not_found_error"
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.create(
                model="trio", max_tokens=8, messages=[{"role": "user", "content": "hello " * 5000}]
            )
        with pytest.raises(anthropic.PermissionDeniedError):
            await client.messages.create(model="trio", max_tokens=8, messages=HELLO, extra_body={"reward_weights": 9})
    async with AsyncAnthropic(base_url=address, api_key="unknown", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            await stranger.messages.create(model="trio", max_tokens=8, messages=HELLO)
