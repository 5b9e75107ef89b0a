"""Every route that is posted to, found by walking the application: no field is ignored in silence, weights count or are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from eft_integrations.backends.engine import EngineBackend
from eft_integrations.server.evaluation.batch_lines import BadLinesError, read_lines
from eft_integrations.server.evaluation.batch_settings import BatchSettings
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.serving import make_app, running
from tests.toy import make_trio

HELLO = [{"role": "user", "content": "ab"}]
LINE = {
    "custom_id": "1",
    "method": "POST",
    "url": "/v1/completions",
    "body": {"model": "m", "prompt": "a", "max_tokens": 1},
}
NEEDED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "m", "messages": HELLO, "max_tokens": 1},
    "/v1/completions": {"model": "m", "prompt": "ab", "max_tokens": 1},
    "/v1/responses": {"model": "m", "input": "ab", "max_output_tokens": 1},
    "/v1/messages": {"model": "m", "messages": HELLO, "max_tokens": 1},
    "/v1/messages/count_tokens": {"model": "m", "messages": HELLO},
    "/v1/score": {"model": "m", "prompt": "a", "continuations": ["b"]},
    "/tokenize": {"model": "m", "prompt": "ab"},
    "/detokenize": {"model": "m", "tokens": [1]},
    "/v1/batches": {"endpoint": "/v1/completions"},
    "/v1/batches/{batch_id}/cancel": {},
    "/v1/files": {"purpose": "batch"},
}
"""What each route needs, except for files' ids."""
WEIGHTED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/score")


class Asking:
    """Posts to any route; files are made where a route needs them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.headers: dict[str, str] = {}

    def _file(self, headers: dict[str, str] | None = None, **fields: str) -> httpx.Response:
        data = {"purpose": "batch", **fields}
        files = {"file": ("f.jsonl", json.dumps(LINE).encode())}
        return httpx.post(f"{self._url}/v1/files", data=data, files=files, headers=headers)

    def _batch(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {**NEEDED["/v1/batches"], "input_file_id": self._file().json()["id"], **fields}
        return httpx.post(f"{self._url}/v1/batches", json=body, headers=headers)

    def post(self, path: str, **fields: Any) -> httpx.Response:
        if path == "/v1/files":
            return self._file(self.headers, **{name: str(value) for name, value in fields.items()})
        if path == "/v1/batches":
            return self._batch(self.headers, **fields)
        body = {**NEEDED[path], **fields}
        if "{batch_id}" in path:
            path = path.replace("{batch_id}", self._batch().json()["id"])
        return httpx.post(f"{self._url}{path}", json=body, headers=self.headers, timeout=60)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = ServerSettings(batches=BatchSettings(folder=tmp_path_factory.mktemp("batches")))
    with make_trio("llama").engine() as engine:
        served = {"m": EngineBackend.of(engine, model_name="m")}
        posted = {
            route.path
            for route in make_app(served, settings).state.routes
            if isinstance(route, APIRoute) and "POST" in (route.methods or ())
        }
        assert posted == set(NEEDED)
        with running(served, settings) as url:
            yield url


@pytest.fixture
def asking(url: str) -> Asking:
    return Asking(url)


@pytest.mark.parametrize("path", NEEDED)
def test_unknown_field_is_named(asking: Asking, path: str) -> None:
    plain, told = asking.post(path), asking.post(path, xyz=1)
    assert (plain.status_code, told.status_code) == (200, 200), told.text
    assert "ignored" not in (plain.json().get("eft") or {})
    assert told.json()["eft"]["ignored"] == ["xyz"]


@pytest.mark.parametrize("path", NEEDED)
@pytest.mark.parametrize("name", ["eft_xyz", "rewardWeights", "weights", "eft_reward_weight"])
def test_near_miss_of_a_name_of_ours_is_refused(asking: Asking, path: str, name: str) -> None:
    refused = asking.post(path, **{name: 1})
    assert refused.status_code == 400, refused.text
    assert name in refused.json()["error"]["message"]


@pytest.mark.parametrize("path", NEEDED)
@pytest.mark.parametrize("name", ["reward_weights", "eft_reward_weights"])
def test_weights_are_in_effect_or_refused(asking: Asking, path: str, name: str) -> None:
    answered = asking.post(path, **{name: 0.25})
    if path in WEIGHTED:
        assert set(answered.json()["eft"]["reward_weights"].values()) == {0.25}
        return
    assert answered.status_code == 400, answered.text
    assert "this route has no eft_reward_weights" in answered.json()["error"]["message"]


@pytest.mark.parametrize("path", NEEDED)
def test_weights_of_a_header_are_in_effect_or_named(asking: Asking, path: str) -> None:
    asking.headers = {"X-EFT-Reward-Weights": "0.25"}
    eft = asking.post(path).json()["eft"]
    if path in WEIGHTED:
        assert set(eft["reward_weights"].values()) == {0.25}
        assert "ignored" not in eft
    else:
        assert eft["ignored"] == ["header.X-EFT-Reward-Weights"]
    asking.headers = {"X-EFT-Reward-Weight": "0.25"}
    assert asking.post(path).status_code == 400


def test_batch_s_line_has_nothing_beside_its_request(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps(LINE))
    assert [line.custom_id for line in read_lines(path, "/v1/completions", max_lines=2)] == ["1"]
    path.write_text(json.dumps({**LINE, "reward_weights": 0.5}))
    with pytest.raises(BadLinesError) as bad:
        read_lines(path, "/v1/completions", max_lines=2)
    assert "there is no reward_weights beside the request" in str(bad.value.findings)
