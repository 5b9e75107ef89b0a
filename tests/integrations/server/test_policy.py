"""Weights that may be asked for: by composition, by key, over every carrier."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from eft_engine import errors
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.server.app import app_of
from eft_integrations.server.callers import reloading
from eft_integrations.server.callers.callers import ANYBODY, KeyRing, KeySettings, read_key_file
from eft_integrations.server.callers.reloading import Reloader
from eft_integrations.server.callers.weight_policy import DEFAULT, WeightPolicy
from eft_integrations.server.compositions import Composition
from eft_integrations.server.service import Service
from eft_integrations.server.settings import ServerSettings, load_settings
from eft_integrations.server.vllm_engine import vllm_command
from tests.integrations.server.serving import in_process

ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def key(**fields: Any) -> KeySettings:
    """A key as a file writes it."""
    return KeySettings.model_validate(fields)


KEYS = [
    key(name="plain", key="plain-key"),
    key(name="research", key="research-key", weight_policy={"chat": "free"}),
    key(name="fixed", key="fixed-key", weight_policy="fixed"),
    key(name="other", key="other-key", compositions=["n"]),
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


async def ask(client: httpx.AsyncClient, weights: Any = None, held: str | None = None, **how: Any) -> tuple[int, str]:
    """Status and code of an answer."""
    headers = {**how.pop("headers", {}), **({"Authorization": f"Bearer {held}"} if held else {})}
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


def test_policies_and_keys_of_the_documentation(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/server.md").read_text(encoding="utf-8")
    shown = [text for text in re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL) if "weight_policy" in text]
    path = tmp_path / "eft.toml"
    path.write_text("\n".join(shown), encoding="utf-8")
    settings = load_settings(path)
    (assistant,) = settings.served
    ring = KeyRing(settings.known_keys)
    research, web = ring.holder("sk-research-0123456789"), ring.holder("sk-web-0123456789")
    assert research is not None
    assert web is not None
    own = Composition("assistant", backend(), assistant.weights, weight_policy=WeightPolicy.of(assistant.weight_policy))
    assert own.allowed(ANYBODY) == {"helpful": [-1.0, 3.0], "harmless": "fixed"}
    assert own.allowed(research) == {"helpful": "free", "harmless": "fixed"}
    assert own.allowed(web) == {"helpful": "fixed", "harmless": "fixed"}
    assert (web.max_requests, web.max_tokens_in_flight, web.compositions) == (8, 20000, frozenset({"assistant"}))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("NaN", (400, "invalid_weight")),
        ("Infinity", (400, "invalid_weight")),
        ("-1e999", (400, "invalid_weight")),
        ("1e308", FORBIDDEN),
        ("-0.0", OK),
        ("true", (400, "invalid_value")),
        ('"1"', (400, "invalid_value")),
        ("[1]", (400, "invalid_value")),
        ('{"chat": true}', (400, "invalid_value")),
        ('{"chat": null}', (400, "invalid_value")),
        ('{"chat": NaN}', (400, "invalid_weight")),
        ('{"Chat": 1}', (400, "unknown_pair")),
        ('{"chat ": 1}', (400, "unknown_pair")),
        ('{"other": 1}', (400, "unknown_pair")),
        ('{"json": -1e-9}', FORBIDDEN),
        ('{"chat": 2.0000000000000004}', FORBIDDEN),
        ('{"chat": 1, "chat": 5}', FORBIDDEN),
        ("{}", OK),
        ("null", OK),
    ],
)
async def test_weights_of_every_form_are_bound_or_refused(weights: str, expected: tuple[int, str]) -> None:
    body = f'{{"model": "m", "messages": [{{"role": "user", "content": "hi"}}], "eft_reward_weights": {weights}}}'
    async with in_process(served()) as client:
        reply = await client.post("/v1/chat/completions", content=body)
    assert (reply.status_code, reply.json().get("error", {}).get("code") or "ok") == expected


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"model": "m@chat=nan"}, (400, "invalid_weight")),
        ({"model": "m@chat=1,chat=5"}, (400, "invalid_value")),
        ({"model": "m@chat=-1e-9"}, FORBIDDEN),
        ({"model": "m@chat=0,json=2.5"}, FORBIDDEN),
        ({"model": "m@other=1"}, (400, "unknown_pair")),
        ({"model": "m@chat=5@chat=1"}, (400, "invalid_value")),
        ({"model": "m@"}, (400, "invalid_value")),
        ({"headers": {"X-EFT-Reward-Weights": "chat=inf"}}, (400, "invalid_weight")),
        ({"headers": {"X-EFT-Reward-Weights": "-1"}}, FORBIDDEN),
        ({"headers": {"X-EFT-Reward-Weights": "chat=1,chat=-1"}}, (400, "invalid_value")),
        ({"model": "m@chat=5", "eft_reward_weights": 1.0}, OK),
        ({"model": "m@chat=1", "headers": {"X-EFT-Reward-Weights": "5"}}, FORBIDDEN),
    ],
)
async def test_what_is_farther_is_not_looked_at_and_what_is_nearer_is_bound(how: Any, expected: Any) -> None:
    async with in_process(served()) as client:
        assert await ask(client, **how) == expected


@pytest.mark.parametrize(
    ("second", "expected"), [("json=0.25", OK), ("chat=9", (400, "invalid_value")), ("json=9", FORBIDDEN)]
)
async def test_header_that_comes_twice_is_one_list(second: str, expected: tuple[int, str]) -> None:
    async with in_process(served()) as client:
        headers = [("X-EFT-Reward-Weights", "chat=0.75"), ("X-EFT-Reward-Weights", second)]
        reply = (await client.post("/v1/chat/completions", json=ASKED, headers=headers)).json()
    if expected == OK:
        assert reply["eft"]["reward_weights"] == {"chat": 0.75, "json": 0.25}
    else:
        assert reply["error"]["code"] == expected[1]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_every_route_is_bound(path: str) -> None:
    asked = {"model": "m", "messages": ASKED["messages"], "prompt": ["a", "b"], "input": "hi"}
    field = {"/v1/chat/completions": "messages", "/v1/completions": "prompt", "/v1/responses": "input"}[path]
    for stream in (False, True):
        body = {"model": "m", field: asked[field], "stream": stream, "eft_reward_weights": {"chat": -1}}
        async with in_process(served()) as client:
            assert (await client.post(path, json=body)).status_code == 403


async def test_trio_of_another_server_is_bound_here() -> None:
    """A composition with `url` has no engine here, but the policy of this server."""
    remote = ScriptedBackend(weights={"chat": 1.0}, takes_any_pair=True)
    own = Composition("m", remote, remote.weights, weight_policy=WeightPolicy.of((0.5, 1.0), DEFAULT))
    async with in_process([own], ServerSettings(keys=[key(name="one", key="one")])) as client:
        assert await ask(client, 0.4, "one") == FORBIDDEN
        assert await ask(client, {"other": 0.7}, "one") == (400, "unknown_pair")
        assert await ask(client, 0.7, "one") == OK


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ([2, 1], "the lower one first"),
        ([0, float("inf")], "two finite numbers"),
        ([0, 1, 2], "must be 'free', 'fixed' or"),
        ([True, 2], "must be 'free', 'fixed' or"),
        ("Fixed", "must be 'free', 'fixed' or"),
        ({"chat": "fixd"}, "the rule of 'chat' must be"),
        (0.5, "must be 'free', 'fixed' or"),
    ],
)
def test_policy_that_is_none_is_refused_with_what_one_is(policy: Any, reason: str) -> None:
    with pytest.raises(errors.InvalidOptionError, match=reason):
        load_settings(keys=[{"name": "one", "key": "one", "weight_policy": policy}])


def test_names_that_are_not_there_are_refused() -> None:
    bad = key(name="one", key="one", compositions=["other"])
    with pytest.raises(errors.InvalidOptionError, match="may use 'other', and this server has m, n"):
        Service.of(served(), ServerSettings(keys=[bad]))
    bad = key(name="one", key="one", weight_policy={"chatt": "fixed"})
    with pytest.raises(errors.InvalidOptionError, match="has a rule for 'chatt', and the pairs are chat, json"):
        Service.of(served(), ServerSettings(keys=[bad]))
    with pytest.raises(errors.InvalidOptionError, match="composition 'm' has a rule for 'chatt'"):
        Service.of(served({"chatt": "fixed"}), ServerSettings())


@pytest.mark.parametrize("text", ["", " ", "two words", "schlüssel", "a\nb", "\x7f"])
def test_key_that_no_header_carries_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidOptionError, match="must be letters, digits and signs"):
        load_settings(keys=[{"name": "one", "key": text}])


def test_ring_wants_names_and_keys_that_differ() -> None:
    one = key(name="one", key="secret")
    for other in (key(name="one", key="other"), key(name="two", key="secret")):
        with pytest.raises(errors.InvalidOptionError, match="give each its own"):
            KeyRing([one, other])
    ring = KeyRing([key(name="hashed", key_sha256="2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b")])
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


async def test_watching_reads_what_changed_while_models_were_loaded_and_survives_every_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(reloading, "LOOK_S", 0.01)
    keys, moved = tmp_path / "keys", tmp_path / "moved"
    keys.write_text("first one\n", encoding="utf-8")
    seen = reloading.stamps([keys])
    service = Service.of(served(), ServerSettings(api_key_file=keys))
    keys.write_text("first changed-while-loading\n", encoding="utf-8")
    answers: list[Any] = [ServerSettings(api_key_file=keys), RuntimeError("broken"), ServerSettings(api_key_file=moved)]

    def read() -> ServerSettings:
        answer = answers.pop(0) if answers else ServerSettings(api_key_file=moved)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def until(held: str) -> None:
        async with asyncio.timeout(10):
            while service.ring.holder(held) is None:
                await asyncio.sleep(0.01)

    moved.write_text("first elsewhere\n", encoding="utf-8")
    async with Reloader(service, read, [keys], seen=seen).watching():
        await until("changed-while-loading")
        keys.write_text("first not-read\n", encoding="utf-8")
        async with asyncio.timeout(10):
            while "broken" not in caplog.text:
                await asyncio.sleep(0.01)
        assert service.ring.holder("changed-while-loading") is not None
        keys.write_text("first the-file-is-another-now\n", encoding="utf-8")
        await until("elsewhere")
        moved.write_text("first watched-too\n", encoding="utf-8")
        await until("watched-too")


def test_vllm_s_server_refuses_what_it_cannot_hold() -> None:
    toy: dict[str, Any] = {"name": "m", "base": "base", "pairs": {"chat": {"tuned": "a", "reference": "b"}}}
    with pytest.raises(errors.InvalidOptionError, match="has a weight_policy, which only our own engine knows"):
        vllm_command(load_settings(compositions=[{**toy, "weight_policy": "fixed"}]))
    for own in ({"tool_notation": "hermes"}, {"reasoning_tags": ("<a>", "</a>")}):
        with pytest.raises(errors.InvalidOptionError, match=f"^{next(iter(own))}: only our own engine's server"):
            vllm_command(load_settings(compositions=[{**toy, **own}]))


@pytest.mark.parametrize(
    "told",
    [
        {"uds": "x.sock"},
        {"ssl_certfile": "x.pem"},
        {"allowed_hosts": ["x"]},
        {"cors_origins": ["*"]},
        {"connections": {"max_connections": 9}},
        {"bounds": {"messages": 9}},
        {"request_timeout_s": 9},
        {"drain_timeout_s": 9},
        {"max_body_bytes": 9000},
        {"default_max_tokens": 9},
        {"ping_interval_s": 9},
        {"max_stored_responses": 9},
        {"force_usage": True},
        {"page": False},
        {"access_log": False},
        {"log_format": "json"},
        {"log_level": "debug"},
        {"metrics_without_key": True},
        {"stall_timeout_s": 9},
        {"otel": True},
        {"upstream_api_key": "x"},
    ],
    ids=lambda told: next(iter(told)),
)
def test_setting_that_vllm_s_server_does_not_know_is_refused(told: dict[str, Any]) -> None:
    toy: dict[str, Any] = {"name": "m", "base": "base", "pairs": {"chat": {"tuned": "a", "reference": "b"}}}
    with pytest.raises(errors.InvalidOptionError, match=f"^{next(iter(told))}: only our own engine's server"):
        vllm_command(load_settings(compositions=[toy], **told))
