"""HEAD, wrong methods, unknown paths, a slash too many, bodies without a header, and pages of other origins."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.serving import in_process

GOT = ["/v1/models", "/v1/models/m", "/health", "/ready", "/metrics", "/openapi.json"]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/completions": {"prompt": "a"},
    "/v1/responses": {"input": "a"},
    "/tokenize": {"prompt": "a"},
}


@pytest.mark.parametrize("path", GOT)
async def test_what_can_be_got_can_be_asked_for_by_head(path: str) -> None:
    async with in_process({"m": ScriptedBackend([])}) as client:
        got, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.headers["content-type"]) == (got.status_code, got.headers["content-type"])
    assert (head.content, got.content != b"") == (b"", True)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("HEAD", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("OPTIONS", "/v1/responses", "POST"),
        ("POST", "/v1/responses/resp_1", "DELETE, GET, HEAD"),
    ],
)
async def test_wrong_method_is_told_which_are_right(method: str, path: str, allowed: str) -> None:
    async with in_process({"m": ScriptedBackend([])}) as client:
        response = await client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    if method != "HEAD":
        assert response.json()["error"]["code"] == "method_not_allowed"


async def test_path_that_is_not_there_is_a_typed_404() -> None:
    async with in_process({"m": ScriptedBackend([])}) as client:
        for path in ("/v1/nothing", "/v1/chat", "/v1/chat/completions/x"):
            error = (await client.post(path, json={})).json()["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "not_found")


@pytest.mark.parametrize("path", ASKED)
async def test_slash_at_the_end_and_a_body_without_a_header_change_nothing(path: str) -> None:
    data = json.dumps({"model": "m", **ASKED[path]}).encode()
    async with in_process({"m": ScriptedBackend(["ok"] * 3)}) as client:
        plain = await client.post(path, content=data)
        assert "content-type" not in plain.request.headers
        slashed = await client.post(path + "/", content=data, headers={"Content-Type": "text/plain"})
    assert (plain.status_code, slashed.status_code) == (200, 200)


async def test_page_of_an_allowed_origin_may_ask_what_it_may_send() -> None:
    settings = ServerSettings(cors_origins=["https://page.example"])
    headers = {
        "Origin": "https://page.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-eft-reward-weights",
    }
    async with in_process({"m": ScriptedBackend([])}, settings) as client:
        response = await client.options("/v1/chat/completions", headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://page.example"
    assert "POST" in response.headers["access-control-allow-methods"]
