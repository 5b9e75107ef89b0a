"""Answers that the server keeps, as OpenAI's client and the Agents SDK go on from them."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from agents import Agent, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from eft_integrations.agents.openai_agents import agents_model

set_tracing_disabled(True)
LOOK: Any = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}


class Point(BaseModel):
    """What the schema asks for."""

    x: bool


@function_tool
def look(place: str) -> str:
    """Look at a place."""
    return f"sunny in {place}"


async def kinds_before(base_url: str, response_id: str | None) -> list[str]:
    """Kinds of the items that an answer was given to."""
    assert response_id is not None
    async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
        return [item.type async for item in await client.responses.input_items.list(response_id, order="asc")]


def test_client_goes_on_from_an_answer_reads_and_deletes_it(base_url: str) -> None:
    with OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        first = client.responses.create(model="trio", input="hello", temperature=0, store=True, metadata={"a": "b"})
        with client.responses.stream(
            model="trio", input="hello", temperature=0, previous_response_id=first.id
        ) as events:
            second = events.get_final_response()
        assert (second.previous_response_id, second.store, first.metadata) == (first.id, True, {"a": "b"})
        assert second.usage.input_tokens > first.usage.input_tokens
        parsed = client.responses.parse(
            model="trio", input="hello", text_format=Point, previous_response_id=second.id, store=False
        )
        assert isinstance(parsed.output_parsed, Point)
        got = client.responses.retrieve(second.id)
        assert got.model_dump() == second.model_dump(exclude={"output"}) | {"output": got.model_dump()["output"]}
        assert got.output_text == second.output_text
        items = client.responses.input_items.list(second.id).data
        assert [item.role for item in items] == ["user", "assistant", "user"]
        assert all(item.id for item in items)
        client.responses.delete(second.id)
        for unknown in (second.id, parsed.id):
            with pytest.raises(openai.NotFoundError) as gone:
                client.responses.retrieve(unknown)
            assert gone.value.code == "response_not_found"
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model="trio", input="hello", previous_response_id=second.id)


def test_result_of_a_call_and_a_reference_are_enough(base_url: str) -> None:
    with OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        first = client.responses.create(model="tools", input="How is Paris?", tools=[LOOK])
        (call,) = first.output
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        second = client.responses.create(
            model="tools",
            input=[result],
            tools=[LOOK],
            previous_response_id=first.id,
            extra_body={"reward_weights": 0.25},
        )
        assert second.output_text == 'sunny {"scripted": 0.25}'
        reference: Any = [
            {"role": "user", "content": "How is Paris?"},
            {"type": "item_reference", "id": call.id},
            result,
        ]
        assert client.responses.create(model="tools", input=reference, tools=[LOOK]).output_text.startswith("sunny")


def test_fields_that_are_not_used_are_told_and_wrong_ones_refused(base_url: str) -> None:
    with OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        reply = client.responses.create(
            model="trio", input="hello", temperature=0, truncation="auto", include=["reasoning.encrypted_content"],
            tools=[{"type": "web_search"}], text={"verbosity": "low"}, service_tier="auto", user="u", max_tool_calls=2,
            extra_body={"top_k": 1, "seed": 3},
        )  # fmt: skip
        assert reply.model_extra["eft"]["ignored"] == [
            "include.reasoning.encrypted_content", "text.verbosity", "tools.0: type web_search", "truncation",
        ]  # fmt: skip
        for wrong in ({"background": True}, {"conversation": "c"}, {"extra_body": {"rewardWeights": 1}}):
            with pytest.raises(openai.BadRequestError):
                client.responses.create(model="trio", input="hello", **wrong)


@pytest.mark.parametrize("streamed", [False, True])
async def test_agent_s_conversation_is_kept_by_the_server(base_url: str, streamed: bool) -> None:
    agent = Agent(name="weather", model=agents_model("tools", base_url=base_url, api="responses"), tools=[look])
    if streamed:
        result: Any = Runner.run_streamed(agent, "How is Paris?", auto_previous_response_id=True)
        async for _ in result.stream_events():
            pass
    else:
        result = await Runner.run(agent, "How is Paris?", auto_previous_response_id=True)
    assert result.final_output.startswith("sunny in Paris")
    told = ["message", "function_call", "function_call_output"]
    assert await kinds_before(base_url, result.last_response_id) == told
    again = await Runner.run(agent, "And now?", previous_response_id=result.last_response_id)
    assert again.final_output.startswith("sunny in Paris")
    assert (await kinds_before(base_url, again.last_response_id))[: len(told) + 2] == [*told, "message", "message"]
