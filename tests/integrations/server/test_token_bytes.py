"""Log-probabilities over characters that are split over tokens: through the real engine, whole and streamed, and the adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from eft_engine import Regex
from eft_integrations.backends.engine import EngineBackend
from eft_integrations.backends.remote import RemoteBackend
from eft_integrations.chat.messages import Message
from eft_integrations.chat.request import ChatRequest
from tests.integrations.server.serving import events_of, running
from tests.toy import make_trio

TEXT = "süß 日本 🐧"
"""In the toy tokenizer every byte is a token."""

STARTS = [place for place, character in enumerate(TEXT) for _ in character.encode()]
HELD: dict[str, Any] = {"model": "m", "guided_choice": [TEXT], "max_tokens": 40}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with make_trio("llama").engine() as engine, running({"m": EngineBackend.of(engine, model_name="m")}) as url:
        yield url


def ask(url: str, path: str, **body: Any) -> list[Any]:
    """The choices of a reply, or of the chunks of a stream."""
    response = httpx.post(f"{url}/v1/{path}", json={**HELD, **body}, timeout=60)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return list(response.json()["choices"])
    chunks = [json.loads(event) for event in events_of(response.text) if event != "[DONE]"]
    return [choice for chunk in chunks for choice in chunk["choices"]]


@pytest.mark.parametrize("stream", [False, True])
def test_joined_bytes_of_a_chat_are_its_text(url: str, stream: bool) -> None:
    messages = [{"role": "user", "content": "a"}]
    choices = ask(url, "chat/completions", messages=messages, logprobs=True, top_logprobs=2, stream=stream)
    tokens = [token for choice in choices for token in (choice["logprobs"] or {"content": []})["content"]]
    said = "".join(
        choice.get("message", choice.get("delta"))["content"] or "" for choice in choices if "content" in str(choice)
    )
    assert said == TEXT
    assert b"".join(bytes(token["bytes"] or ()) for token in tokens) == TEXT.encode()
    assert all(top["bytes"] is None or len(top["bytes"]) == 1 for token in tokens for top in token["top_logprobs"])


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_of_a_completion_are_characters_of_its_text(url: str, stream: bool) -> None:
    choices = ask(url, "completions", prompt="ab", logprobs=1, stream=stream)
    offsets = [offset for choice in choices if choice["logprobs"] for offset in choice["logprobs"]["text_offset"]]
    assert offsets[: len(STARTS)] == STARTS
    assert all(offset == len(TEXT) for offset in offsets[len(STARTS) :])


def test_adapter_gets_the_bytes(url: str) -> None:
    backend = RemoteBackend(f"{url}/v1")
    request = ChatRequest(
        messages=(Message("user", "a"),),
        response_grammar=Regex(pattern=TEXT),
        sampling={"logprobs": 1, "max_tokens": 40},
    )
    result = backend.chat(request)
    backend.close()
    assert result.content == TEXT
    assert b"".join(bytes(token.utf8 or ()) for token in result.logprobs or ()) == TEXT.encode()
