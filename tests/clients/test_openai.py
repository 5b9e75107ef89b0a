"""The newest major version of OpenAI's client; the project's own environment tests the one before it, more thoroughly."""

from __future__ import annotations

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel


class Point(BaseModel):
    """What the schema asks for."""

    x: bool


def test_client_is_of_the_major_version_that_this_environment_is_for() -> None:
    assert int(openai.__version__.split(".")[0]) >= 3


def test_chat_stream_schema_and_responses(base_url: str) -> None:
    with OpenAI(base_url=base_url, api_key="none") as client:
        hello = [{"role": "user", "content": "hello"}]
        whole = client.chat.completions.create(model="trio", messages=hello, temperature=0)
        assert whole.choices[0].message.content == "Hello! How can I help?"
        with client.chat.completions.stream(model="trio", messages=hello, temperature=0) as stream:
            assert stream.get_final_completion().choices[0].message.content == "Hello! How can I help?"
        parsed = client.chat.completions.parse(
            model="trio", messages=hello, response_format=Point, extra_body={"eft_reward_weights": 0.0}
        )
        assert isinstance(parsed.choices[0].message.parsed, Point)
        assert parsed.model_extra["eft"]["reward_weights"] == {"chat": 0.0}
        with client.responses.stream(model="trio", input="hello", temperature=0) as events:
            assert events.get_final_response().output_text == "Hello! How can I help?"


async def test_async_client_and_errors(base_url: str) -> None:
    async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
        reply = await client.responses.create(model="trio", input="hello", temperature=0)
        assert reply.output_text == "Hello! How can I help?"
        with pytest.raises(openai.BadRequestError) as overflow:
            await client.responses.create(model="trio", input="hello " * 5000)
        assert overflow.value.code == "context_length_exceeded"
