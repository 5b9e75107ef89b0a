"""A web page of another server cannot use a server without keys: neither under a name of its own, nor by posting from afar."""

from __future__ import annotations

from pathlib import Path

import pytest

from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.serving import in_process

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'


async def ask(settings: ServerSettings, headers: dict[str, str], method: str = "POST") -> tuple[int, str | None]:
    """The status of an answer and the code of its error."""
    async with in_process({"m": ScriptedBackend(["ok"])}, settings) as client:
        path, content = ("/v1/chat/completions", BODY) if method == "POST" else ("/v1/models", b"")
        response = await client.request(
            method, path, content=content, headers={"Content-Type": "text/plain", **headers}
        )
    return response.status_code, None if response.status_code == 200 else response.json()["error"]["code"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.1.2.3", "[::1]:80", "eft.localhost"]
)
async def test_names_of_this_machine_are_answered(host: str) -> None:
    assert await ask(ServerSettings(), {"Host": host}) == (200, None)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.0.1", "a b", "localhost/x",
     "me@localhost", "localhost:port", ""],
)  # fmt: skip
async def test_other_names_are_not(host: str) -> None:
    assert await ask(ServerSettings(), {"Host": host}) == (421, "host_not_allowed")


async def test_names_that_the_operator_allows_are_answered() -> None:
    settings = ServerSettings(allowed_hosts=["eft.example", "*.team.example"])
    assert await ask(settings, {"Host": "EFT.example:8000"}) == (200, None)
    assert await ask(settings, {"Host": "one.team.example"}) == (200, None)
    assert await ask(settings, {"Host": "team.example"}) == (421, "host_not_allowed")
    assert await ask(settings, {"Host": "steam.example"}) == (421, "host_not_allowed")
    assert await ask(ServerSettings(allowed_hosts=["*"]), {"Host": "any.example"}) == (200, None)


async def test_with_a_key_names_are_free_unless_some_are_allowed() -> None:
    key = {"Authorization": "Bearer secret", "Host": "any.example", "Origin": "https://page.example"}
    assert await ask(ServerSettings(api_key="secret"), key) == (200, None)
    settings = ServerSettings(api_key="secret", allowed_hosts=["eft.example"])
    assert await ask(settings, key) == (421, "host_not_allowed")


async def test_names_are_not_looked_at_on_a_unix_socket(tmp_path: Path) -> None:
    assert await ask(ServerSettings(uds=tmp_path / "socket"), {"Host": "any.example"}) == (200, None)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:3000", "file://", "http://localhost.evil"]
)
async def test_page_of_another_server_may_not_post(origin: str) -> None:
    headers = {"Host": "localhost:8000", "Origin": origin}
    assert await ask(ServerSettings(), headers) == (403, "origin_not_allowed")
    assert await ask(ServerSettings(), headers, "GET") == (403, "origin_not_allowed")


async def test_pages_of_the_server_itself_and_those_of_the_operator_may() -> None:
    own = {"Host": "localhost:8000", "Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}
    assert await ask(ServerSettings(), own) == (200, None)
    allowed = ServerSettings(cors_origins=["https://page.example"])
    assert await ask(
        allowed, {"Host": "localhost", "Origin": "https://page.example", "Sec-Fetch-Site": "cross-site"}
    ) == (200, None)
    assert await ask(allowed, {"Host": "localhost", "Origin": "https://other.example"}) == (403, "origin_not_allowed")


async def test_link_may_be_followed_and_a_picture_may_not_be_fetched() -> None:
    settings = ServerSettings()
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert await ask(settings, followed, "GET") == (200, None)
    assert await ask(settings, {**followed, "Sec-Fetch-Mode": "no-cors"}, "GET") == (403, "origin_not_allowed")
    assert await ask(settings, followed) == (403, "origin_not_allowed")  # a form that posts is a navigation too
