"""What an operator reads: every line, one line for every request, why requests failed, and never what users wrote."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from eft_engine import Engine, errors
from eft_integrations.backends.pool import backend_of
from eft_integrations.backends.remote import RemoteBackend
from eft_integrations.backends.scripted import Broken, ScriptedBackend
from eft_integrations.chat.request import ChatDelta, ChatRequest
from eft_integrations.server.compositions import Composition
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.logged import Lines, logging_to
from tests.integrations.server.serving import events_of, in_process, running
from tests.toy import make_trio

HELLO = [{"role": "user", "content": "hi"}]
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
ACCESS, FAILURE = ".server.access", ".seen.access_log"


def body(path: str, text: str = "hi", **fields: Any) -> dict[str, Any]:
    """A small request to a path."""
    asked = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": text}]},
        "/v1/completions": {"prompt": text},
        "/v1/responses": {"input": text},
    }
    return {"model": "m", **asked[path], **fields}


async def until(fact: Callable[[], bool]) -> None:
    """Wait for something."""
    async with asyncio.timeout(30):
        while not fact():
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A small engine."""
    with make_trio("llama").engine() as engine:
        yield engine


# ---- lines ---------------------------------------------------------------------------------------------------------------


def test_every_logger_writes_json_whatever_it_is_told() -> None:
    with logging_to() as lines:
        logging.getLogger("uvicorn.error").info("started %d", 1, extra={"color_message": "\x1b[1mstarted"})
        logging.getLogger("another.library").warning(
            "two\nlines %s", "x", extra={"share": float("nan"), "level": object}
        )
        logging.getLogger("another.library").error("wrong %d", "no number")
        logging.getLogger("another.library").error("half \ud800 of a pair")
        warnings.warn("something is old", DeprecationWarning, stacklevel=1)
        warnings.warn("something is wrong", UserWarning, stacklevel=1)
        try:
            raise ValueError("lost")
        except ValueError:
            logging.getLogger("another.library").exception("failed")
        thread = threading.Thread(target=lambda: 1 / 0, name="worker")
        thread.start()
        thread.join()
        sys.excepthook(KeyError, KeyError("gone"), None)
    found = lines.objects
    assert all({"time", "level", "logger", "message"} <= set(line) for line in found)
    assert [line["message"] for line in found[:3]] == [
        "started 1",
        "two\nlines x",
        "wrong %d (its values do not fit: TypeError)",
    ]
    assert found[1]["share"] == "nan"
    assert found[1]["level"] == "warning", "whatever else is called so"
    assert "color_message" not in found[0]
    (failed,) = [line for line in found if line["message"] == "failed"]
    assert failed["error"] == "ValueError"
    assert "ValueError: lost" in failed["traceback"]
    assert any("something is wrong" in line["message"] for line in lines.of("py.warnings"))
    assert [line["error"] for line in lines.of("seen.logs")] == ["ZeroDivisionError", "KeyError"]


def test_text_has_a_line_each_with_names_and_values() -> None:
    with logging_to("text") as lines:
        logging.getLogger("a").info("one\nline", extra={"weights": {"x": 0.5}, "reasons": ["stop"], "seconds": 1 / 3})
    (line,) = lines.getvalue().splitlines()
    assert line.endswith(r"INFO a: one\nline weights=x:0.5 reasons=stop seconds=0.333333")


def test_level_debug_is_for_our_own_lines_alone() -> None:
    with logging_to(level="debug") as lines:
        logging.getLogger("eft_engine.engine.sequence").debug("own")
        logging.getLogger("another.library").debug("holds what a user wrote")
        logging.getLogger("httpx").info("HTTP Request: POST http://inside:8000/v1")
    assert [line["message"] for line in lines.objects] == ["own"]


def test_long_texts_that_an_error_quotes_are_cut() -> None:
    with logging_to() as lines:
        try:
            raise ValueError(f"cannot read '{'my secret diary ' * 3}' and {'z' * 1000}")
        except ValueError as error:
            logging.getLogger("a").error("failed", exc_info=error)
    (line,) = lines.objects
    assert "diary" not in line["traceback"].splitlines()[-1]
    assert "<48 characters>" in line["traceback"]
    assert max(map(len, line["traceback"].splitlines())) <= 303


# ---- one line for every request --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
async def test_line_of_a_request_has_all_there_is_to_know(path: str, stream: bool, engine: Engine) -> None:
    settings = ServerSettings.model_validate({"keys": [{"name": "alice", "key": "secret-of-alice"}]})
    with logging_to() as lines:
        async with in_process({"m": backend_of(engine)}, settings) as client:
            limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
            response = await client.post(
                path,
                json=body(path, stream=stream, eft_reward_weights=0.5, temperature=0, ignore_eos=True, **{limit: 4}),
                headers={"Authorization": "Bearer secret-of-alice", "X-Request-Id": "run-7"},
            )
    assert response.status_code == 200, response.text
    assert response.headers["x-request-id"] == "run-7"
    assert '"request_id":"run-7"' in response.text.replace(" ", "")
    (line,) = lines.of(ACCESS)
    told = {
        name: line[name] for name in ("method", "path", "status", "caller", "request_id", "model", "completion_tokens")
    }
    assert told == {
        "method": "POST", "path": path, "status": 200, "caller": "alice", "request_id": "run-7", "model": "m",
        "completion_tokens": 4,
    }  # fmt: skip
    assert line["bytes"] == len(response.content)
    assert line["prompt_tokens"] > 0
    assert line["finish_reasons"] == ["length"]
    assert line["reward_weights"] == {"chat": 0.5}
    assert 0 < line["first_piece_s"] <= line["duration_s"]
    assert ("stream" in line) == stream
    assert "secret-of-alice" not in lines.getvalue()
    assert not lines.of(FAILURE)


async def test_id_that_could_end_a_line_is_replaced_and_errors_have_one_too() -> None:
    with logging_to() as lines:
        async with in_process({"m": ScriptedBackend(["ok"])}) as client:
            odd = await client.get("/v1/models", headers={"X-Request-Id": "a b"})
            unknown = await client.post(
                PATHS[0], json={**body(PATHS[0]), "model": "x"}, headers={"X-Request-Id": "one"}
            )
            nowhere = await client.get("/nowhere/with/a/secret", headers={"X-Request-Id": "two"})
            await client.request("SECRET", "/v1/models")
    assert len(odd.headers["x-request-id"]) == 32
    assert (unknown.status_code, unknown.headers["x-request-id"]) == (404, "one")
    assert (nowhere.status_code, nowhere.headers["x-request-id"]) == (404, "two")
    first, second, third, fourth = lines.of(ACCESS)
    assert (fourth["method"], fourth["status"]) == ("OTHER", 405)
    assert first["path"] == "/v1/models"
    assert (second["code"], second["request_id"]) == ("model_not_found", "one")
    assert (third["path"], third["code"]) == ("other", "not_found")
    assert "secret" not in lines.getvalue().lower()


async def test_every_answer_of_several_has_an_id_of_its_own_in_the_engine(engine: Engine) -> None:
    with logging_to(level="debug") as lines:
        async with in_process({"m": backend_of(engine)}) as client:
            response = await client.post(
                PATHS[0], json=body(PATHS[0], n=2, max_tokens=2), headers={"X-Request-Id": "run-8"}
            )
    report = response.json()["eft"]
    assert report["request_id"] == "run-8"
    assert [choice["request_id"] for choice in report["choices"]] == ["run-8-0", "run-8-1"]
    assert {line["request_id"] for line in lines.of("engine.sequence")} == {"run-8-0", "run-8-1"}


async def test_client_that_leaves_is_told_as_499(engine: Engine) -> None:
    asked = body(PATHS[1], max_tokens=200, ignore_eos=True, stream=True)
    with logging_to() as lines, running({"m": backend_of(engine)}) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            async with client.stream("POST", PATHS[1], json={**asked, "n": 8}) as response:
                async for _ in response.aiter_lines():
                    break
            await until(lambda: bool(lines.of(ACCESS)))
    (line,) = lines.of(ACCESS)
    assert (line["status"], line["code"]) == (499, "client_left")
    assert line["message"].endswith("499 (sent as 200)")


async def test_probes_that_say_yes_are_not_logged() -> None:
    with logging_to() as lines:
        async with in_process({"m": ScriptedBackend([])}) as client:
            for path in ("/health", "/ready", "/metrics"):
                assert (await client.get(path)).status_code == 200
    assert lines.of(ACCESS) == []


async def test_what_a_foreseen_error_quotes_of_another_is_cut() -> None:
    error = errors.EngineStepError("a step failed: no token for 'this is what a user wrote, zwölf'")
    with logging_to() as lines:
        async with in_process({"m": ScriptedBackend([error])}) as client:
            await client.post(PATHS[0], json=body(PATHS[0]))
    (line,) = lines.of(FAILURE)
    assert line["message"].endswith("a step failed: no token for <32 characters>")


async def test_access_log_can_be_turned_off_and_failures_are_still_told() -> None:
    with logging_to() as lines:
        async with in_process({"m": ScriptedBackend([IndexError("lost")])}, ServerSettings(access_log=False)) as client:
            await client.post(PATHS[0], json=body(PATHS[0]))
    assert lines.of(ACCESS) == []
    assert len(lines.of(FAILURE)) == 1


# ---- why requests failed -------------------------------------------------------------------------------------------------


def causes(lines: Lines) -> list[dict[str, Any]]:
    """Lines that tell why something failed."""
    return [line for line in lines.objects if line["level"] in ("warning", "error", "critical")]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
async def test_unforeseen_cause_is_told_once_with_its_traceback(path: str, stream: bool) -> None:
    with logging_to() as lines:
        async with in_process({"m": ScriptedBackend([IndexError("lost")])}) as client:
            response = await client.post(path, json=body(path, stream=stream), headers={"X-Request-Id": "run-9"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "run-9"
    assert response.json()["error"]["message"] == "the server failed; its log says why"
    (cause,) = causes(lines)
    assert (cause["request_id"], cause["error"], cause["path"]) == ("run-9", "IndexError", path)
    assert "IndexError: lost" in cause["traceback"]
    assert lines.of(ACCESS)[-1]["status"] == 500


@pytest.mark.parametrize("path", PATHS)
async def test_cause_of_a_failure_inside_a_stream_is_told_once(path: str) -> None:
    with logging_to() as lines:
        async with in_process({"m": ScriptedBackend([Broken("one two", IndexError("lost"), after=1)])}) as client:
            response = await client.post(path, json=body(path, stream=True), headers={"X-Request-Id": "run-9"})
    assert response.status_code == 200
    assert "the server failed; its log says why" in events_of(response.text)[-1]
    (cause,) = causes(lines)
    assert (cause["request_id"], cause["error"]) == ("run-9", "IndexError")
    (line,) = lines.of(ACCESS)
    assert (line["status"], line["message"].endswith("500 (sent as 200)")) == (500, True)


@pytest.mark.parametrize(
    ("error", "status", "level"),
    [
        (errors.StepOutOfMemoryError("tried to allocate 20 GiB"), 503, "warning"),
        (
            errors.RemoteServerError("the server at http://inside:8000/v1 cannot be reached", status=None),
            502,
            "warning",
        ),
        (errors.EngineStepError("a step failed: device-side assert"), 500, "error"),
        (errors.EngineClosedError("the engine is closed"), 503, "warning"),
        (errors.LoadError("no config.json in /srv/models/base"), 500, "error"),
    ],
)
async def test_foreseen_cause_is_one_line_without_a_traceback(error: errors.EFTError, status: int, level: str) -> None:
    error.__cause__ = RuntimeError("below")
    with logging_to() as lines:
        async with in_process({"m": ScriptedBackend([error])}) as client:
            response = await client.post(PATHS[0], json=body(PATHS[0]))
    assert response.status_code == status
    (cause,) = causes(lines)
    assert cause["level"] == level
    assert cause["message"] == f"request failed: {type(error).__name__} from RuntimeError: {error}"
    assert "traceback" not in cause


async def test_failed_step_has_its_traceback_once_under_the_id_of_the_request(engine: Engine) -> None:
    def broken(blocks: object) -> None:
        raise RuntimeError("cannot read this")

    with logging_to() as lines, pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._trio.networks[0], "forward", broken)
        async with in_process({"m": backend_of(engine)}) as client:
            response = await client.post(PATHS[0], json=body(PATHS[0]), headers={"X-Request-Id": "run-10"})
    assert response.status_code == 500
    assert "cannot read this" not in response.text
    of_engine, of_server = causes(lines)
    assert of_engine["request_id"] == of_server["request_id"] == "run-10"
    assert "cannot read this" in of_engine["traceback"]
    assert "traceback" not in of_server


async def test_what_a_caller_can_mend_is_no_failure(engine: Engine) -> None:
    with logging_to() as lines:
        async with in_process({"m": backend_of(engine)}) as client:
            await client.post(PATHS[0], json=body(PATHS[0], "a" * 5000))
            await client.post(PATHS[0], content=b"{")
    assert causes(lines) == []
    assert [line["code"] for line in lines.of(ACCESS)] == ["context_length_exceeded", "invalid_json"]


@pytest.mark.parametrize("stream", [False, True])
async def test_answer_that_takes_too_long_is_a_warning(stream: bool) -> None:
    class Endless(ScriptedBackend):
        """Gives one word in a stream, and then nothing."""

        async def astream(self, request: ChatRequest) -> AsyncIterator[ChatDelta]:
            if stream:
                yield ChatDelta(text="word")
            await asyncio.Event().wait()

    with logging_to() as lines:
        async with in_process({"m": Endless([])}, ServerSettings(request_timeout_s=0.2)) as client:
            response = await client.post(PATHS[0], json=body(PATHS[0], stream=stream))
    assert response.status_code == (200 if stream else 504)
    (cause,) = causes(lines)
    assert (cause["level"], cause["code"]) == ("warning", "request_timeout")
    assert lines.of(ACCESS)[-1]["status"] == 504


# ---- what is never logged --------------------------------------------------------------------------------------------------


async def test_texts_of_users_are_not_logged_at_any_level(engine: Engine) -> None:
    secret = "a very secret prompt"
    backends = {
        "m": backend_of(engine),
        "broken": ScriptedBackend([IndexError("lost"), Broken("own words", OSError(), after=1)]),
    }
    with logging_to(level="debug") as lines, running(backends, log_level="debug") as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            for path in PATHS:
                await client.post(path, json=body(path, secret, max_tokens=2, stop=[secret], user=secret))
                await client.post(path, json={**body(path, secret), "model": secret})
                await client.post(path, json=body(path, secret, temperature=secret))
            await client.post(PATHS[1], json={"model": "m", "prompt": [secret, 1]})
            await client.post(PATHS[1], json={"model": "broken", "prompt": secret})
            await client.post(PATHS[1], json={"model": "broken", "prompt": secret, "stream": True})
            await client.get(f"/{secret}?q={secret}")
    assert len(lines.of(ACCESS)) == 13
    assert secret not in lines.getvalue()
    assert "own words" not in lines.getvalue()


def test_process_that_cannot_start_says_so_in_json() -> None:
    code = "import typer; from eft_integrations.server.command import serve; typer.run(serve)"
    flags = ["--base", "/nowhere/at/all", "--log-format", "json", "--port", "0"]
    ran = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    last = json.loads(ran.stderr.splitlines()[-1])
    assert last["level"] == "critical"
    assert "/nowhere/at/all" in last["message"]
    assert ran.stdout == ""


async def test_id_goes_on_to_the_server_that_holds_the_model(engine: Engine) -> None:
    with running({"m": backend_of(engine)}) as url, logging_to() as lines:
        far = Composition.of("far", RemoteBackend(f"{url}/v1"))
        async with in_process([far]) as client:
            response = await client.post(
                PATHS[1], json={**body(PATHS[1], max_tokens=2), "model": "far"}, headers={"X-Request-Id": "run-11"}
            )
        await until(
            lambda: len([line for line in lines.of(ACCESS) if "model" in line]) == 2
        )  # the farther one's is later
    assert response.status_code == 200
    assert {(line["model"], line["request_id"]) for line in lines.of(ACCESS) if "model" in line} == {
        ("far", "run-11"),
        ("m", "run-11"),
    }
