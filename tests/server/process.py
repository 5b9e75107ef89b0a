"""A real `eft serve` process over a small trio on disk, and what can be seen of it from outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.toy import make_model, make_tokenizer

SERVE = "import typer; from eft_integrations.server.command import serve; typer.run(serve)"
CONTEXT_LEN = 1024
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) [\w.]+: ")
"""What every line of the log begins with."""

KEYS = {"mallory": "key-of-mallory", "victim": "key-of-the-victim", "third": "key-of-a-third"}
"""Keys of the servers that ask for one, by name."""

VICTIM: dict[str, Any] = {
    "model": "toy",
    "prompt": "What is a penguin?",
    "max_tokens": 12,
    "ignore_eos": True,
    "temperature": 0,
}
"""A request that is answered the same whenever it is sent."""


def save_trio(folder: Path) -> list[str]:
    """Write the trio; the flags that name it."""
    for name, hidden_size in (("base", 64), ("tuned", 32), ("reference", 32)):
        model = make_model("llama", hidden_size=hidden_size, seed=hidden_size, context_len=CONTEXT_LEN)
        model.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    named = [part for name in ("base", "tuned", "reference") for part in (f"--{name}", str(folder / name))]
    return [*named, "--name", "toy", "--device", "cpu"]


def write_keys(file: Path) -> Path:
    """A file with all keys."""
    file.write_text("".join(f"{name} {key}\n" for name, key in KEYS.items()), encoding="utf-8")
    return file


class ServerProcess:
    """A server on a free port of loopback; `url` is known once it listens."""

    def __init__(self, flags: Sequence[str], *, key: str | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        self.key = key
        self.lines: list[str] = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        while not self._listening.wait(0.05):
            if self.process.poll() is not None:
                self._reader.join(10)
                raise AssertionError("".join(self.lines))
        self.url = re.findall(r"running on (\S+)", "".join(self.lines))[0]
        self.seen = psutil.Process(self.process.pid)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if "running on" in line:
                self._listening.set()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.rpartition("//")[2].rpartition(":")
        return host, int(port)

    def headers(self, name: str | None = None) -> dict[str, str]:
        """The header with a caller's key, where keys are asked for."""
        key = KEYS[name] if name is not None else self.key
        return {"Authorization": f"Bearer {key}"} if self.key is not None else {}

    def client(self, name: str | None = None, *, timeout: float = 60.0) -> httpx.Client:
        """A client of its own connections."""
        return httpx.Client(base_url=self.url, headers=self.headers(name), timeout=timeout, trust_env=False)

    def rss(self) -> int:
        """Bytes of memory."""
        return int(self.seen.memory_info().rss)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with self.client("victim" if self.key else None) as client:
            text = client.get("/metrics").raise_for_status().text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def wait_until_idle(self) -> None:
        """Until nothing runs and nothing waits."""
        deadline = time.monotonic() + 60
        while self.metric("eft_requests_running") or self.metric("eft_requests_waiting"):
            assert time.monotonic() < deadline, "slots stay taken"
            time.sleep(0.05)

    def ask(self, client: httpx.Client, **fields: Any) -> str:
        """The victim's answer."""
        response = client.post("/v1/completions", json={**VICTIM, **fields})
        assert response.status_code == 200, response.text[:300]
        return str(response.json()["choices"][0]["text"])

    def check_log(self, since: int = 0) -> None:
        """No traceback, nothing that nobody foresaw, no line of another form."""
        lines = self.lines[since:]
        wrong = [line for line in lines if not LOG_LINE.match(line) or "foresaw" in line or " ERROR " in line]
        assert not wrong, "".join(wrong[:40])

    def stop(self) -> None:
        """End it as an operator would, and see that it ends."""
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()
