"""POST /v1/completions and /tokenize: raw texts, several prompts, echo, the old form of log-probabilities."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from eft_integrations.backends.scripted import ScriptedBackend
from tests.integrations.server.serving import events_of, in_process


async def ask(backend: ScriptedBackend, path: str = "/v1/completions", **body: Any) -> httpx.Response:
    """One request to a server of a scripted backend called m."""
    async with in_process({"m": backend}) as client:
        return await client.post(path, json={"model": "m", **body})


async def test_prompt_reaches_the_backend_as_it_is_and_sixteen_tokens_are_the_default() -> None:
    backend = ScriptedBackend(["there was"])
    reply = (await ask(backend, prompt="Once", eft_reward_weights=0.5)).json()
    (request,) = backend.requests
    assert (request.prompt, request.messages, request.sampling["max_tokens"]) == ("Once", (), 16)
    assert reply["object"] == "text_completion"
    assert reply["choices"] == [{"index": 0, "text": "there was", "logprobs": None, "finish_reason": "stop"}]
    assert reply["eft"]["reward_weights"] == {"scripted": 0.5}


async def test_several_prompts_with_n_answers_are_numbered_prompt_by_prompt() -> None:
    backend = ScriptedBackend(["a1", "a2", "b1", "b2"])
    reply = (await ask(backend, prompt=["a", "b b"], n=2)).json()
    assert [(choice["index"], choice["text"]) for choice in reply["choices"]] == [
        (0, "a1"), (1, "a2"), (2, "b1"), (3, "b2"),
    ]  # fmt: skip
    assert reply["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_echo_puts_the_prompt_in_front_also_in_a_stream() -> None:
    whole = (await ask(ScriptedBackend([" was"]), prompt="There", echo=True)).json()
    assert whole["choices"][0]["text"] == "There was"
    streamed = await ask(
        ScriptedBackend([" was"]), prompt="There", echo=True, stream=True, stream_options={"include_usage": True}
    )
    *events, last = events_of(streamed.text)
    assert last == "[DONE]"
    got = [json.loads(event) for event in events]
    assert "".join(choice["text"] for chunk in got for choice in chunk["choices"]) == "There was"
    assert got[-1]["choices"] == []
    assert got[-1]["usage"]["prompt_tokens"] == 1


async def test_start_token_of_a_prompt_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = await ask(ScriptedBackend(["ok"]), prompt="a", add_special_tokens=False)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "add_special_tokens")
    monkeypatch.setattr("eft_integrations.server.openai.completions.engine_of", lambda composition, option: None)
    backend = ScriptedBackend(["ok"] * 3)
    for given in ({"add_special_tokens": False}, {"add_special_tokens": True}, {}):
        assert "ignored" not in (await ask(backend, prompt="a", **given)).json()["eft"]
    assert [request.prompt_options.add_special_tokens for request in backend.requests] == [False, True, True]


async def test_what_completions_do_not_have_is_refused_by_name() -> None:
    for body, param in (
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
    ):
        response = await ask(ScriptedBackend(["ok"]), **body)
        assert response.status_code == 400, body
        assert response.json()["error"]["param"].startswith(param)


async def test_tokenize_gives_tokens_of_a_text_and_the_count_of_a_conversation() -> None:
    text = (await ask(ScriptedBackend([]), "/tokenize", prompt="a b c")).json()
    assert text == {"count": 3, "max_model_len": 4096, "tokens": [0, 1, 2]}
    messages = [{"role": "user", "content": "a b"}]
    assert (await ask(ScriptedBackend([]), "/tokenize", messages=messages)).json()["count"] == 2
    assert (await ask(ScriptedBackend([]), "/tokenize")).status_code == 400
