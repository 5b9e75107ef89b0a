"""The newest major version of OpenAI's client; the project's own environment tests the one before it, more thoroughly."""

from __future__ import annotations

import json
import time
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, DefaultHttpxClient, OpenAI
from pydantic import BaseModel

HELLO: Any = [{"role": "user", "content": "hello"}]


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


@pytest.mark.parametrize("stream", [False, True])
def test_fields_that_are_null_are_not_there(base_url: str, stream: bool) -> None:
    names = (
        "max_tokens", "max_completion_tokens", "n", "stop", "seed", "top_p", "presence_penalty", "frequency_penalty", "logit_bias",
        "logprobs", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "response_format", "stream_options", "user",
        "metadata", "reasoning_effort",
    )  # fmt: skip
    with OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        asked: Any = {"model": "trio", "messages": HELLO, "temperature": 0, **dict.fromkeys(names), "stream": stream}
        answer = client.chat.completions.create(**asked)
        chunks: Any = list(answer) if stream else [answer]
    pieces = [chunk.choices[0].delta.content if stream else chunk.choices[0].message.content for chunk in chunks]
    assert "".join(piece or "" for piece in pieces) == "Hello! How can I help?"


def test_raw_responses_and_request_ids(base_url: str) -> None:
    with OpenAI(base_url=base_url, api_key="none") as client:
        own = {"X-Request-Id": "mine-1"}
        raw = client.chat.completions.with_raw_response.create(
            model="trio", messages=HELLO, temperature=0, extra_headers=own
        )
        assert raw.headers["x-request-id"] == "mine-1"
        assert raw.parse()._request_id == "mine-1"
        assert client.models.list()._request_id
        with client.chat.completions.with_streaming_response.create(
            model="trio", messages=HELLO, temperature=0, stream=True
        ) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in response.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="other", messages=HELLO, extra_headers=own)
        assert missing.value.request_id == "mine-1"


def test_what_is_wrong_is_not_sent_again_and_what_is_full_is_when_it_says(
    base_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Any] = []
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    http = DefaultHttpxClient(event_hooks={"response": [answers.append]})
    with OpenAI(base_url=base_url, api_key="narrow", max_retries=2, http_client=http) as client:
        for wrong in ({"temperature": -1}, {"extra_body": {"eft_reward_weights": 9}}, {"n": 2}):
            with pytest.raises(openai.APIStatusError):
                client.chat.completions.create(model="trio", messages=HELLO, **wrong)
        assert [answer.status_code for answer in answers] == [400, 403, 400]
        answers.clear()
        held = client.completions.create(
            model="trio", prompt="a", max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(held))
        with pytest.raises(openai.RateLimitError) as full:
            client.chat.completions.create(model="trio", messages=HELLO)
        held.close()
    assert full.value.code == "key_limit_exceeded"
    assert [answer.status_code for answer in answers] == [200, 429, 429, 429]
    assert slept == [float(answers[1].headers["Retry-After"])] * 2


def test_time_limit_of_one_call(base_url: str) -> None:
    with OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.01).completions.create(
                model="trio", prompt="a", max_tokens=3000, extra_body={"ignore_eos": True}
            )
        assert client.with_options(timeout=60).models.retrieve("trio").id == "trio"


def test_parse_helpers_of_both_routes_and_of_streams(base_url: str) -> None:
    class Look(BaseModel):
        """Look at a place."""

        place: str

    with OpenAI(base_url=base_url, api_key="none") as client:
        tool = openai.pydantic_function_tool(Look, name="look")
        called = client.chat.completions.parse(model="tools", messages=HELLO, tools=[tool])
        assert called.choices[0].message.tool_calls[0].function.parsed_arguments == Look(place="Paris")
        with client.chat.completions.stream(model="tools", messages=HELLO, tools=[tool]) as stream:
            message = stream.get_final_completion().choices[0].message
        assert message.tool_calls[0].function.parsed_arguments == Look(place="Paris")
        parsed = client.responses.parse(model="trio", input="hello", text_format=Point)
        assert isinstance(parsed.output_parsed, Point)
        with client.responses.stream(model="trio", input="hello", text_format=Point) as events:
            kinds = [event.type for event in events]
            assert isinstance(events.get_final_response().output_parsed, Point)
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "response.output_text.delta" in kinds


def test_bytes_of_tokens_join_to_the_text(base_url: str) -> None:
    with OpenAI(base_url=base_url, api_key="none") as client:
        reply = client.chat.completions.create(
            model="trio", messages=HELLO, logprobs=True, top_logprobs=3, max_tokens=40, seed=1, temperature=2,
            extra_body={"eft_reward_weights": 0.0},
        )  # fmt: skip
    (choice,) = reply.choices
    tokens = choice.logprobs.content
    assert all(len(token.top_logprobs) == 3 and token.bytes is not None for token in tokens)
    written = b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace")
    assert written.startswith(choice.message.content.rstrip("\N{REPLACEMENT CHARACTER}")[:10])


def test_files_and_batches(base_url: str) -> None:
    bodies: list[dict[str, Any]] = [
        {"model": "trio", "messages": HELLO, "temperature": 0},
        {"model": "trio", "messages": HELLO, "eft_reward_weights": 9},
    ]
    path = "/v1/chat/completions"
    lines = [{"custom_id": str(index), "method": "POST", "url": path, "body": own} for index, own in enumerate(bodies)]
    data = "\n".join(json.dumps(line) for line in lines).encode()
    with OpenAI(base_url=base_url, api_key="none") as client, OpenAI(base_url=base_url, api_key="narrow") as other:
        file = client.files.create(file=("in.jsonl", data), purpose="batch")
        assert client.files.content(file.id).read() == data
        assert client.files.wait_for_processing(file.id).status == "processed"
        batch = client.batches.create(
            input_file_id=file.id, endpoint=path, completion_window="24h", metadata={"a": "b"}
        )
        for _ in range(300):
            if (batch := client.batches.retrieve(batch.id)).status == "completed":
                break
            time.sleep(0.05)
        assert (batch.status, batch.metadata) == ("completed", {"a": "b"})
        assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
        answered = json.loads(client.files.content(batch.output_file_id).text)
        assert answered["response"]["body"]["choices"][0]["message"]["content"] == "Hello! How can I help?"
        refused = json.loads(client.files.content(batch.error_file_id).text)
        assert (refused["custom_id"], refused["response"]["status_code"]) == ("1", 403)
        assert client.batches.cancel(batch.id).status == "completed"
        assert [own.id for own in client.batches.list(limit=1)] == [batch.id]
        assert [own.id for own in client.files.list()][-1] == file.id
        with pytest.raises(openai.NotFoundError):
            other.files.retrieve(file.id)
        assert [*other.batches.list()] == []
        assert client.files.delete(file.id).deleted
        empty = client.files.create(file=("in.jsonl", b"no JSON"), purpose="batch")
        failed = client.batches.create(input_file_id=empty.id, endpoint=path, completion_window="24h")
        for _ in range(300):
            if (failed := client.batches.retrieve(failed.id)).status == "failed":
                break
            time.sleep(0.05)
        assert [(own.code, own.line) for own in failed.errors.data] == [("invalid_json_line", 1)]
