"""Texts to tokens and back, of a toy trio: /tokenize, /detokenize and /tokenizer_info."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.scripted import ScriptedBackend
from tests.integrations.server.serving import in_process
from tests.toy import CHAT_TEMPLATE, END_ID, make_trio


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server of a toy trio, and of another model."""
    with make_trio("llama").engine() as engine:
        served = {"toy": EngineBackend.of(engine, model_name="toy"), "other": ScriptedBackend([])}
        async with in_process(served) as own:
            yield own


async def test_tokens_go_both_ways(client: httpx.AsyncClient) -> None:
    text = "a ö<|end|>"
    tokenized = (
        await client.post("/tokenize", json={"model": "toy", "prompt": text, "return_token_strs": True})
    ).json()
    assert tokenized["tokens"][-1] == END_ID
    assert tokenized["token_strs"] == ["a", " ", "\ufffd", "\ufffd", "<|end|>"]
    back = await client.post("/detokenize", json={"model": "toy", "tokens": tokenized["tokens"]})
    assert back.json() == {"prompt": text}
    nothing = await client.post("/tokenize", json={"model": "toy", "prompt": ""})
    assert nothing.json()["tokens"] == []
    assert (await client.post("/detokenize", json={"model": "toy", "tokens": []})).json() == {"prompt": ""}


async def test_a_conversation_has_the_tokens_of_its_rendering(client: httpx.AsyncClient) -> None:
    body = {"model": "toy", "messages": [{"role": "user", "content": "hi"}]}
    tokenized = (await client.post("/tokenize", json=body)).json()
    assert tokenized["count"] == len(tokenized["tokens"])
    back = await client.post("/detokenize", json={"model": "toy", "tokens": tokenized["tokens"]})
    assert back.json()["prompt"] == "<|user|>hi<|end|><|assistant|>"


async def test_without_a_model_the_first_one_is_meant(client: httpx.AsyncClient) -> None:
    tokenized = await client.post("/tokenize", json={"prompt": "ab", "add_special_tokens": False})
    back = await client.post("/detokenize", json={"tokens": tokenized.json()["tokens"]})
    assert back.json() == {"prompt": "ab"}
    info = (await client.get("/tokenizer_info")).json()
    assert (info["eos_token"], info["bos_token"], info["chat_template"]) == ("<|end|>", None, CHAT_TEMPLATE)


async def test_what_is_no_token_is_refused(client: httpx.AsyncClient) -> None:
    for tokens in ([100_000], [-1], ["a"], [True], "ab"):
        response = await client.post("/detokenize", json={"model": "toy", "tokens": tokens})
        assert response.status_code == 400, tokens
    other = await client.post("/detokenize", json={"model": "other", "tokens": [1]})
    assert "engine of this server" in other.json()["error"]["message"]
    assert (await client.get("/tokenizer_info", params={"model": "none"})).status_code == 404
