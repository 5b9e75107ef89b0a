"""`eft serve` as its own process: it starts from flags, survives killed clients, and drains on SIGTERM."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.toy import make_model, make_tokenizer

SERVE = "import typer; from eft_integrations.server.command import serve; typer.run(serve)"
LONG = {"model": "toy", "prompt": "abc", "ignore_eos": True, "temperature": 0, "stream": True}
CLIENT = """
import sys, httpx
with httpx.stream("POST", sys.argv[1], content=sys.argv[2], headers={"Content-Type": "application/json"}) as response:
    for line in response.iter_lines():
        print(line, flush=True)
"""


class Process:
    """A server process; `url` is known once it listens. `lines` are all it logged when `reading` has ended."""

    def __init__(self, *flags: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *flags],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.lines: list[str] = []
        self._listening = threading.Event()
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()
        while not self._listening.wait(0.1):
            assert self.process.poll() is None, "".join(self.lines)
        self.url = re.findall(r"running on (http://\S+)", "".join(self.lines))[0]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if "running on" in line:
                self._listening.set()


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name a toy trio on disk."""
    folder = tmp_path_factory.mktemp("toy")
    for name, hidden_size in (("base", 64), ("tuned", 32), ("reference", 32)):
        model = make_model("llama", hidden_size=hidden_size, seed=hidden_size, context_len=4096)
        model.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    named = [part for name in ("base", "tuned", "reference") for part in (f"--{name}", str(folder / name))]
    return [*named, "--name", "toy", "--port", "0", "--device", "cpu", "--max-num-seqs", "4"]


@pytest.fixture
def server(flags: list[str]) -> Iterator[Process]:
    """A process that serves it; killed if the test did not end it."""
    process = Process(*flags)
    yield process
    process.process.kill()
    process.process.wait()


def metric(url: str, name: str) -> float:
    """One of the engine's metrics."""
    text = httpx.get(f"{url}/metrics").text
    return float(re.findall(rf'^{name}{{engine="toy"}} (\S+)$', text, re.MULTILINE)[0])


def test_killed_client_frees_its_slot_and_sigterm_lets_streams_end(server: Process) -> None:
    assert httpx.get(f"{server.url}/v1/models").json()["data"][0]["eft"]["pairs"] == {"tuned": 1.0}

    # a client that is killed while it reads
    body = json.dumps({**LONG, "max_tokens": 4000})
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, f"{server.url}/v1/completions", body], stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    assert client.stdout.readline().startswith("data: ")
    client.send_signal(signal.SIGKILL)
    client.wait()
    while metric(server.url, "eft_requests_cancelled_total") < 1:
        time.sleep(0.05)
    assert metric(server.url, "eft_requests_running") == 0

    # SIGTERM while a stream is read
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json={**LONG, "max_tokens": 400}, timeout=120
    ) as response:
        lines = response.iter_lines()
        got = [next(lines)]
        server.process.send_signal(signal.SIGTERM)
        got += lines
    events = [json.loads(line.removeprefix("data: ")) for line in got if line.startswith("data: {")]
    assert got[-1] == "" or got[-1] == "data: [DONE]"
    assert "data: [DONE]" in got
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    server.process.wait(60)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")
    log = "".join(server.lines)
    assert "Waiting for connections to close" in log or "Shutting down" in log
    assert "Traceback" not in log


def test_stream_that_outlasts_the_drain_is_cut_and_the_process_ends(flags: list[str]) -> None:
    server = Process(*flags, "--drain-timeout-s", "0", "--log-format", "json", "--log-level", "debug")
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json={**LONG, "max_tokens": 4000}, timeout=120
    ) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    server.process.wait(60)
    server.reading.join(60)
    assert server.process.returncode == 0
    logged = [json.loads(line) for line in server.lines]  # of all its life, whoever wrote them
    (ended,) = [line for line in logged if line["logger"].endswith(".access")]
    assert (ended["status"], ended["code"]) == (503, "shutting_down"), ended
    (told,) = [line for line in logged if line["message"].startswith("request was cut")]
    assert (told["request_id"], told["code"]) == (ended["request_id"], "shutting_down")
    assert not [line for line in logged if "traceback" in line]
    assert {line["logger"] for line in logged} >= {"uvicorn.error", "eft_engine.engine.sequence"}
    assert "the engine of toy is loaded" in [line["message"] for line in logged]
