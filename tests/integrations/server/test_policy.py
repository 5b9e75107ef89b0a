"""Weights that may be asked for: by composition, by key, over every carrier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from eft_engine import errors
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.server.app import app_of
from eft_integrations.server.callers import KeyRing, KeySettings, read_key_file
from eft_integrations.server.compositions import Composition
from eft_integrations.server.reloading import Reloader
from eft_integrations.server.service import Service
from eft_integrations.server.settings import ServerSettings, load_settings
from eft_integrations.server.weight_policy import DEFAULT, WeightPolicy
from tests.integrations.server.serving import in_process

ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
KEYS = [
    KeySettings(name="plain", key="plain-key"),
    KeySettings(name="research", key="research-key", weight_policy={"chat": "free"}),
    KeySettings(name="fixed", key="fixed-key", weight_policy="fixed"),
    KeySettings(name="other", key="other-key", compositions=["n"]),
]


def backend() -> ScriptedBackend:
    """Two pairs."""
    return ScriptedBackend(weights={"chat": 1.0, "json": 0.5})


def served(policy: Any = None) -> list[Composition]:
    """Two compositions of which the first has a policy."""
    own = backend()
    return [
        Composition("m", own, own.weights, weight_policy=WeightPolicy.of(policy, DEFAULT)),
        Composition.of("n", own),
    ]


async def ask(client: httpx.AsyncClient, weights: Any = None, key: str | None = None, **how: Any) -> tuple[int, str]:
    """Status and code of an answer."""
    headers = {**how.pop("headers", {}), **({"Authorization": f"Bearer {key}"} if key else {})}
    body = {**ASKED, **how} if weights is None else {**ASKED, "eft_reward_weights": weights, **how}
    response = await client.post("/v1/chat/completions", json=body, headers=headers)
    return response.status_code, response.json().get("error", {}).get("code") or "ok"


FORBIDDEN = (403, "weight_forbidden")
OK = (200, "ok")


@pytest.mark.parametrize(
    ("policy", "weights", "expected"),
    [
        (None, 2.0, OK),
        (None, 2.001, FORBIDDEN),
        (None, -0.001, FORBIDDEN),
        (None, {"json": -1}, FORBIDDEN),
        ("free", -7.0, OK),
        ("fixed", {"chat": 1.0}, OK),
        ("fixed", {"chat": 0.5}, FORBIDDEN),
        ("fixed", 1.0, FORBIDDEN),
        ([-1.0, 0.5], -1.0, OK),
        ([-1.0, 0.5], {"chat": 0.75}, FORBIDDEN),
        ([-1.0, 0.5], {"chat": 1.0}, OK),
        ({"json": "free"}, {"json": -3.0}, OK),
        ({"json": "free"}, {"chat": -3.0}, FORBIDDEN),
    ],
)
async def test_what_is_outside_is_403_with_the_bounds(policy: Any, weights: Any, expected: tuple[int, str]) -> None:
    policy = tuple(policy) if isinstance(policy, list) else policy
    async with in_process(served(policy)) as client:
        assert await ask(client, weights) == expected
        assert (await client.post("/v1/chat/completions", json=ASKED)).status_code == 200


@pytest.mark.parametrize(
    "how", [{"headers": {"X-EFT-Reward-Weights": "chat=3"}}, {"model": "m@chat=3"}, {"eft_reward_weights": {"chat": 3}}]
)
async def test_every_carrier_is_bound(how: Any) -> None:
    async with in_process(served()) as client:
        assert await ask(client, **how) == FORBIDDEN


async def test_policy_of_a_key_goes_before_that_of_the_composition() -> None:
    async with in_process(served(), ServerSettings(keys=KEYS)) as client:
        assert await ask(client, 3.0, "plain-key") == FORBIDDEN
        assert await ask(client, {"chat": -3.0}, "research-key") == OK
        assert await ask(client, {"json": -3.0}, "research-key") == FORBIDDEN
        assert await ask(client, {"chat": 0.0}, "fixed-key") == FORBIDDEN
        assert await ask(client, None, "fixed-key") == OK
        assert await ask(client, None, "other-key") == (404, "model_not_found")
        assert await ask(client, None, "other-key", model="n") == OK
        listed = (await client.get("/v1/models", headers={"x-api-key": "other-key"})).json()["data"]
        assert [model["id"] for model in listed] == ["n"]
        listed = (await client.get("/v1/models/m", headers={"x-api-key": "research-key"})).json()
        assert listed["eft"]["allowed_weights"] == {"chat": "free", "json": [0.0, 2.0]}


def test_ring_wants_names_and_keys_that_differ() -> None:
    one = KeySettings(name="one", key="secret")
    for other in (KeySettings(name="one", key="other"), KeySettings(name="two", key="secret")):
        with pytest.raises(errors.InvalidOptionError, match="give each its own"):
            KeyRing([one, other])
    ring = KeyRing(
        [KeySettings(name="hashed", key_sha256="2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b")]
    )
    assert ring.holder("secret") is not None


def test_key_file_has_a_key_a_line_perhaps_behind_a_name(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nteam-a  first\n\nsecond\n", encoding="utf-8")
    assert [(key.name, key.key.get_secret_value()) for key in read_key_file(file) if key.key] == [
        ("team-a", "first"),
        ("line-4", "second"),
    ]
    for text, why in (("# none\n", "holds no key"), ("a b c\n", "line 1 has more")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(errors.InvalidOptionError, match=why):
            read_key_file(file)


async def test_keys_and_policies_are_read_anew_and_bad_ones_leave_the_old(tmp_path: Path, caplog: Any) -> None:
    config, keys = tmp_path / "eft.toml", tmp_path / "keys"
    config.write_text('[[compositions]]\nname = "m"\npreset = "atlas"\n', encoding="utf-8")
    keys.write_text("first one\n", encoding="utf-8")

    def read() -> ServerSettings:
        return load_settings(config, api_key_file=keys)

    service = Service.of(served(), read())
    reloader = Reloader(service, read, [config, keys])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app_of(service)), base_url="http://127.0.0.1") as client:
        assert await ask(client, 3.0, "one") == FORBIDDEN
        keys.write_text("first two\n", encoding="utf-8")
        with config.open("a", encoding="utf-8") as file:
            file.write('weight_policy = "free"\n')
        assert await ask(client, 3.0, "one") == FORBIDDEN, "nothing was read yet"
        assert reloader.reload()
        assert await ask(client, 3.0, "one") == (401, "invalid_api_key")
        assert await ask(client, 3.0, "two") == OK
        keys.write_text("", encoding="utf-8")
        assert not reloader.reload()
        assert await ask(client, 3.0, "two") == OK
    assert "the old ones stay" in caplog.text
    assert "two" not in caplog.text
