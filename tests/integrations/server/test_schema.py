"""Schemathesis: whatever the OpenAPI description allows, and what it forbids, is never answered with a server error."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode

from eft_engine import Engine
from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.server.evaluation.batch_settings import BatchSettings
from eft_integrations.server.settings import ServerSettings
from tests.choice import thorough_but
from tests.integrations.server.serving import make_app
from tests.toy import make_trio

LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def operations(app: Any) -> dict[str, Any]:
    """All operations of an application, by method and path."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "localhost"})
    return {operation.label: operation for operation in (found.ok() for found in schema.get_all_operations())}


def everything(folder: str | Path) -> ServerSettings:
    """With the routes that are off by default."""
    return ServerSettings(max_stored_responses=4, batches=BatchSettings(folder=Path(folder)))


def labels() -> list[str]:
    """The names of all operations."""
    with tempfile.TemporaryDirectory() as folder:
        described = make_app({"m": ScriptedBackend([])}, everything(folder)).openapi()
    return sorted(f"{method.upper()} {path}" for path, methods in described["paths"].items() for method in methods)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, dict[str, Any]]]:
    """A small engine and the operations of its server."""
    settings = everything(tmp_path_factory.mktemp("batches"))
    with make_trio("llama").engine() as engine:
        yield engine, operations(make_app({"m": backend_of(engine)}, settings))


CASES = [
    pytest.param(label, mode, id=f"{label} {mode.value}")
    for label in labels()
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if mode is GenerationMode.POSITIVE or label.startswith("POST")  # where no body is sent, nothing can be forbidden
]

OFTEN = [
    f"POST /v1/{path} {mode}"
    for path in ("chat/completions", "completions", "messages")
    for mode in ("positive", "negative")
]


@pytest.mark.parametrize(("label", "mode"), thorough_but(CASES, often=OFTEN))
def test_no_request_is_answered_with_a_server_error(
    served: tuple[Engine, dict[str, Any]], label: str, mode: GenerationMode
) -> None:
    engine, found = served

    @given(case=found[label].as_strategy(generation_mode=mode))
    @settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def check(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and "model" in case.body:
            # Other models do not exist, and long answers take long; both would hide everything else.
            short = {name: min(limit, 3) for name in LIMITS if isinstance(limit := case.body.get(name), int)}
            case.body = {**case.body, "model": "m", "max_tokens": 3, "max_output_tokens": 3, **short}
            if isinstance(n := case.body.get("n"), int):
                case.body["n"] = min(n, 2)
        response = case.call(headers={"Host": "localhost"})
        is_told = label == "GET /ready" and response.status_code == 503  # each case's server is shut down behind it
        assert response.status_code < 500 or is_told, response.text

    check()
    while engine.stats().num_running:  # the last answer's slot is given back in the step after it
        time.sleep(0.01)
