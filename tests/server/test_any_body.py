"""No request body, however formed, is answered with a fault of the server or with a reply that is no JSON, or logged as one that
nobody foresaw: bodies of the API's description (schemathesis), and valid ones with wrong values in any place (hypothesis).
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from eft_integrations.backends.scripted import ScriptedBackend
from tests.integrations.server.serving import make_app
from tests.server.process import ServerProcess

QUIET = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
DESCRIBED = make_app({"toy": ScriptedBackend([])}).openapi()
OPERATIONS = sorted(f"{method.upper()} {path}" for path, item in DESCRIBED["paths"].items() for method in item)
LIMITS = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "best_of",
    "top_k",
    "logprobs",
    "top_logprobs",
)

TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}},
}
VALID: dict[str, Any] = {
    "model": "toy", "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "hi"}], "prompt": "abc",
    "input": "hi", "max_tokens": 4, "max_output_tokens": 4, "temperature": 0.5, "stop": ["x"], "seed": 1, "tools": [TOOL],
    "tool_choice": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
    "logit_bias": {"5": 1.0},
    "stream": False, "eft_reward_weights": {"tuned": 0.5}, "metadata": {"a": "b"}, "chat_template_kwargs": {"a": 1},
    "tokens": [1, 2],
}  # fmt: skip
"""What valid bodies hold, for all routes; each gets the fields that it knows."""

STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.0, -0.0, 1e308, 5e-324, float("nan"), float("inf"), "", " ",
    "\0",
    "a", "\ud800", "\udfff\ud800", "ä€😀\u202e", "a" * 5000, "1", "null", "toy", "toy@", "toy@tuned=nan", "toy@x=1", [], {}, [None],
    [[]],
    {"": ""}, {"type": "object"}, {"$ref": "#"}, {"type": "function"}, {"role": "user"}, [{"type": "text", "text": "a"}],
    {"type": "image_url", "image_url": {"url": "http://localhost/x"}}, [0] * 300, {"a" * 300: 1}, {"json_schema": None},
]  # fmt: skip


def routes() -> dict[str, dict[str, Any]]:
    """Properties of the bodies of all routes that read JSON, by path."""
    schemas = DESCRIBED["components"]["schemas"]
    found = {}
    for path, item in DESCRIBED["paths"].items():
        content = item.get("post", {}).get("requestBody", {}).get("content", {})
        reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
        if reference:
            found[path] = schemas[reference.rpartition("/")[2]].get("properties", {})
    return found


ROUTES = routes()


def mutated(path: str, chance: random.Random) -> bytes:
    """A valid body with something wrong in one to three places."""
    known = ROUTES[path]
    body: dict[str, Any] = copy.deepcopy({name: value for name, value in VALID.items() if name in known})
    for name in chance.sample(sorted(body), k=chance.randint(0, len(body) // 2)):
        if name not in ("model", "max_tokens", "max_output_tokens"):
            del body[name]
    for _ in range(chance.randint(1, 3)):
        value = copy.deepcopy(chance.choice(STRANGE))
        for _ in range(chance.choice((0, 0, 0, 1, 2, 50, 150))):
            value = (
                [value]
                if chance.random() < 0.5
                else {chance.choice(("type", "content", "items", "properties", "anyOf")): value}
            )
        place: Any = body
        while True:
            names: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
            if place is body:
                names = [*names, *sorted(known), f"eft_{chance.randint(0, 9)}", "reward_weight"]
            if not names:
                break
            name = chance.choice(names)
            inner = place.get(name) if isinstance(place, dict) else place[name]
            if isinstance(inner, dict | list) and inner and chance.random() < 0.6:
                place = inner
                continue
            place[name] = value
            break
    for name in LIMITS:  # what takes long is another test's
        limit = body.get(name)
        if isinstance(limit, int) and 8 < limit < 10**6:
            body[name] = 4
    if isinstance(body.get("max_tokens"), int | type(None)) and "max_tokens" in known:
        body["max_tokens"] = min(4, body.get("max_tokens") or 4)
    return json.dumps(body).encode()


def check(response: httpx.Response) -> None:
    """A reply is JSON or a stream of it, and an error is typed."""
    assert response.status_code < 500, response.text[:1000]
    if response.headers["content-type"].startswith("text/event-stream"):
        data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
        assert all(isinstance(json.loads(line), dict) for line in data)
        return
    reply = response.json()
    if response.status_code >= 400:
        error = reply["error"]
        assert isinstance(error["message"], str)
        assert isinstance(error["type"], str)
        assert len(error["message"]) < 2500, error["message"][:300]


@pytest.fixture(autouse=True)
def _clean_log(server: ServerProcess) -> Iterator[None]:
    num_lines = len(server.lines)
    yield
    server.wait_until_idle()
    assert server.process.poll() is None
    server.check_log(since=num_lines)


@pytest.mark.parametrize("path", sorted(ROUTES))
def test_valid_body_with_anything_wrong_in_it_is_answered(server: ServerProcess, path: str) -> None:
    with server.client("third") as client:

        @given(number=st.integers(0, 2**32))
        @settings(QUIET, max_examples=80)
        def answered(number: int) -> None:
            content = mutated(path, random.Random(number))
            check(client.post(path, content=content, headers={"Content-Type": "application/json"}))

        answered()


@pytest.mark.parametrize("path", sorted(ROUTES))
def test_any_bytes_are_answered(server: ServerProcess, path: str) -> None:
    with server.client("third") as client:

        @given(
            content=st.binary(max_size=200)
            | st.text(alphabet='{}[]",:\\u0d8e1truefalsn \n', max_size=60).map(str.encode)
        )
        @settings(QUIET, max_examples=30)
        def answered(content: bytes) -> None:
            check(client.post(path, content=content, headers={"Content-Type": "application/json"}))

        answered()


@pytest.fixture(scope="module")
def described(server: ServerProcess) -> dict[str, Any]:
    """All operations that the process itself describes, by method and path."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=server.headers("third"))
    return {operation.label: operation for operation in (found.ok() for found in schema.get_all_operations())}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATIONS)
def test_description_is_never_answered_with_a_server_error(
    server: ServerProcess, described: dict[str, Any], label: str, mode: GenerationMode
) -> None:
    if mode is GenerationMode.NEGATIVE and not label.startswith("POST"):
        return  # where no body is sent, nothing can be forbidden

    @given(case=described[label].as_strategy(generation_mode=mode))
    @settings(QUIET, max_examples=15)
    def answered(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and "model" in case.body:
            short = {name: min(limit, 3) for name in LIMITS if isinstance(limit := case.body.get(name), int)}
            case.body = {**case.body, "model": "toy", "max_tokens": 3, "max_output_tokens": 3, **short}
        response = case.call(headers=server.headers("third"))
        assert response.status_code < 500, response.text[:1000]

    answered()
