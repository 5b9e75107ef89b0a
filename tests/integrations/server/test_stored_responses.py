"""Answers of /v1/responses that are kept: going on from one, references to items, whose they are, and how many there may be."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from pydantic import SecretStr

from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.chat.messages import Message, ToolCall
from eft_integrations.server.callers.callers import Caller
from eft_integrations.server.errors import ApiError
from eft_integrations.server.openai.stored_responses import StoredResponses
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.serving import in_process, running

KEPT = ServerSettings(max_stored_responses=4)
ANN, BOB = Caller("ann"), Caller("bob")
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}


async def ask(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/responses", json={"model": "m", **body})
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


@pytest.mark.parametrize("stream", [False, True])
async def test_call_goes_on_from_an_answer_without_its_instructions(stream: bool) -> None:
    backend = ScriptedBackend(["one", "two", "three"])
    async with in_process({"m": backend}, KEPT) as client:
        first = await ask(client, input="a", instructions="rules")
        second = await ask(client, input="b", previous_response_id=first["id"])
        assert (first["store"], second["previous_response_id"]) == (True, first["id"])
        body = {
            "model": "m",
            "input": "c",
            "previous_response_id": second["id"],
            "instructions": "others",
            "stream": stream,
        }
        await client.post("/v1/responses", json=body)
    said = [[(message.role, message.content) for message in request.messages] for request in backend.requests]
    assert said[0] == [("system", "rules"), ("user", "a")]
    assert said[1] == [("user", "a"), ("assistant", "one"), ("user", "b")]
    assert said[2] == [("system", "others"), *said[1], ("assistant", "two"), ("user", "c")]


async def test_result_of_a_call_is_sent_alone() -> None:
    backend = ScriptedBackend([Message("assistant", "", (ToolCall("c1", "look", "{}"),)), "seen"])
    async with in_process({"m": backend}, KEPT) as client:
        first = await ask(client, input="a", tools=[LOOK])
        (call,) = first["output"]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "a penguin"}
        await ask(client, input=[result], previous_response_id=first["id"], tools=[LOOK])
    assert [message.role for message in backend.requests[1].messages] == ["user", "assistant", "tool"]
    assert backend.requests[1].messages[2].name == "look"


async def test_item_is_referred_to_by_its_id() -> None:
    backend = ScriptedBackend(["one", "two"])
    async with in_process({"m": backend}, KEPT) as client:
        first = await ask(client, input="a")
        items = [{"type": "item_reference", "id": first["output"][0]["id"]}, {"role": "user", "content": "b"}]
        await ask(client, input=items)
        unknown = await client.post(
            "/v1/responses", json={"model": "m", "input": [{"type": "item_reference", "id": "x"}]}
        )
    assert [message.content for message in backend.requests[1].messages] == ["one", "b"]
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "item_not_found")


async def test_answer_is_got_listed_and_forgotten() -> None:
    async with in_process({"m": ScriptedBackend(["one"])}, KEPT) as client:
        made = await ask(client, input="a")
        path = f"/v1/responses/{made['id']}"
        assert (await client.get(path)).json() == made
        (item,) = (await client.get(f"{path}/input_items")).json()["data"]
        assert item["content"] == [{"type": "input_text", "text": "a"}]
        assert (await client.delete(path)).json() == {"id": made["id"], "object": "response", "deleted": True}
        gone = await client.get(path)
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "response_not_found")


async def test_items_are_listed_in_pages_newest_first() -> None:
    async with in_process({"m": ScriptedBackend(["one"])}, KEPT) as client:
        made = await ask(client, input=[{"role": "user", "content": text} for text in "abc"])
        path = f"/v1/responses/{made['id']}/input_items"
        everything = (await client.get(path)).json()
        said = [(item["type"], item["content"]) for item in everything["data"]]
        assert said == [("message", [{"type": "input_text", "text": text}]) for text in "cba"]
        forward = (await client.get(path, params={"order": "asc"})).json()
        assert (forward["data"], forward["has_more"]) == (everything["data"][::-1], False)
        page = (await client.get(path, params={"limit": 1, "after": everything["data"][0]["id"]})).json()
        assert (page["data"], page["has_more"]) == ([everything["data"][1]], True)
        assert [
            (await client.get(path, params=wrong)).status_code
            for wrong in ({"after": "x"}, {"limit": 0}, {"order": "up"})
        ] == [404, 400, 400]
        assert (await client.get(f"/v1/responses/{made['id']}", params={"stream": "true"})).status_code == 400


async def test_openai_s_client_reads_what_is_kept() -> None:
    with running({"m": ScriptedBackend(["one", "two"])}, KEPT) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            made = await client.responses.create(model="m", input="a")
            await client.responses.create(model="m", input="b", previous_response_id=made.id)
            assert (await client.responses.retrieve(made.id)).output_text == "one"
            assert [item.type async for item in await client.responses.input_items.list(made.id)] == ["message"]
            await client.responses.delete(made.id)


async def test_store_false_keeps_nothing() -> None:
    async with in_process({"m": ScriptedBackend(["one"])}, KEPT) as client:
        made = await ask(client, input="a", store=False)
        assert (made["store"], (await client.get(f"/v1/responses/{made['id']}")).status_code) == (False, 404)


async def test_without_a_store_every_way_to_it_says_what_to_do() -> None:
    async with in_process({"m": ScriptedBackend(["one"] * 2)}) as client:
        made = await ask(client, input="a", store=True)
        assert (made["store"], made["eft"]["ignored"]) == (False, ["store"])
        body = {"model": "m", "input": "b", "previous_response_id": made["id"]}
        answers = [
            await client.post("/v1/responses", json=body),
            await client.get(f"/v1/responses/{made['id']}"),
            await client.delete(f"/v1/responses/{made['id']}"),
            await client.get(f"/v1/responses/{made['id']}/input_items"),
        ]
    assert {(own.status_code, own.json()["error"]["code"]) for own in answers} == {(400, "responses_not_stored")}


async def test_another_key_can_neither_read_nor_go_on_from_an_answer() -> None:
    settings = ServerSettings(api_key=SecretStr("secret-a,secret-b"), max_stored_responses=4)
    own, other = ({"Authorization": f"Bearer {key}"} for key in ("secret-a", "secret-b"))
    async with in_process({"m": ScriptedBackend(["one"] * 3)}, settings) as client:
        made = (await client.post("/v1/responses", json={"model": "m", "input": "a"}, headers=own)).json()
        path = f"/v1/responses/{made['id']}"
        body = {"model": "m", "input": "b", "previous_response_id": made["id"]}
        reference = {"model": "m", "input": [{"type": "item_reference", "id": made["output"][0]["id"]}]}
        refused = [
            await client.get(path, headers=other),
            await client.delete(path, headers=other),
            await client.post("/v1/responses", json=body, headers=other),
            await client.post("/v1/responses", json=reference, headers=other),
        ]
        assert [response.status_code for response in refused] == [404] * 4
        assert (await client.get(path, headers=own)).status_code == 200


def test_least_recently_used_answers_leave() -> None:
    store = StoredResponses(2, max_bytes=10_000)
    store.add(ANN, {"id": "1", "output": []}, [])
    store.add(ANN, {"id": "2", "output": []}, [])
    store.find(ANN, "1")
    store.add(BOB, {"id": "3", "output": []}, [])
    assert len(store) == 2
    assert store.find(ANN, "1").response["id"] == "1"
    with pytest.raises(ApiError, match="there is no response '2'"):
        store.find(ANN, "2")


def test_bytes_are_bounded_and_an_answer_that_is_larger_is_not_kept() -> None:
    store = StoredResponses(10, max_bytes=300)
    for number in range(5):
        store.add(ANN, {"id": str(number), "output": [], "text": "x" * 100}, [])
    assert len(store) == 2
    store.add(ANN, {"id": "large", "output": [], "text": "x" * 400}, [])
    assert len(store) == 2


@pytest.mark.parametrize(
    "kind", ["web_search", "file_search", "code_interpreter", "mcp", "image_generation", "local_shell", "custom"]
)
async def test_tool_of_another_kind_is_left_out_with_a_note(kind: str) -> None:
    backend = ScriptedBackend(["ok"])
    async with in_process({"m": backend}) as client:
        reply = await ask(client, input="a", tools=[{"type": kind, "name": "x"}, LOOK])
        assert reply["eft"]["ignored"] == [f"tools.0: type {kind}"]
        assert [tool.name for tool in backend.requests[0].tools] == ["look"]
        body = {"model": "m", "input": "a", "tools": [{"type": kind, "name": "x"}, LOOK]}
        for choice in ({"type": kind}, {"type": kind, "name": "x"}):
            demanded = await client.post("/v1/responses", json={**body, "tool_choice": choice})
            assert (demanded.status_code, demanded.json()["error"]["param"]) == (400, "tool_choice")


async def test_includes_formats_and_items_that_are_not_used_are_named() -> None:
    async with in_process({"m": ScriptedBackend(["ok"])}) as client:
        reply = await ask(
            client,
            input=[{"role": "user", "content": [{"type": "input_text", "text": "a", "lang": "de"}], "mood": "x"}],
            include=["reasoning.encrypted_content", "message.output_text.logprobs"],
            text={"verbosity": "low"},
            truncation="auto",
            max_tool_calls=3,
        )
    assert reply["eft"]["ignored"] == [
        "include.reasoning.encrypted_content", "input.content.lang", "input.mood", "text.verbosity", "truncation",
    ]  # fmt: skip
