"""An operator's day, against a real process: keys and policies in a file, changed while it runs, broken, mended."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integrations.server.test_process import SERVE
from tests.toy import make_model, make_tokenizer

ENGINE = """
drain_timeout_s = 5
[engine]
device = "cpu"
max_num_seqs = 4
max_queued_requests = 4
"""
COMPOSITION = """
[[compositions]]
name = "toy"
base = "{folder}/base"
weights = {{ helpful = 1.0, harmless = 0.5 }}
pairs.helpful = {{ tuned = "{folder}/tuned", reference = "{folder}/reference" }}
pairs.harmless = {{ tuned = "{folder}/reference", reference = "{folder}/tuned" }}
"""
KEYS = """
[[keys]]
name = "plain"
key = "plain-key"

[[keys]]
name = "research"
key = "research-key"
weight_policy = {{ helpful = "free" }}

[[keys]]
name = "small"
key = "small-key"
max_requests = 2
max_tokens_in_flight = 3000
weight_policy = "fixed"
{more}
"""
ONE_MORE = """
[[keys]]
name = "newcomer"
key = "newcomer-key"
"""
LONG: dict[str, Any] = {"model": "toy", "prompt": "abc", "ignore_eos": True, "temperature": 0, "stream": True}


class Operated:
    """A server process with its configuration file."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "eft.toml"
        self._composition = COMPOSITION.format(folder=folder)
        self.write()
        self._log = folder / "log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, "--config", str(self.config), "--port", "0"], stderr=log
            )
        self.wait_for("running on")
        self.url = re.findall(r"running on (http://\S+)", self.log)[0]

    @property
    def log(self) -> str:
        """What was logged so far."""
        return self._log.read_text()

    def write(self, policy: str = "{ harmless = [-1.0, 1.0] }", more: str = "", top: str = "") -> None:
        """Write the configuration."""
        policy_line = f"weight_policy = {policy}\n"
        text = top + ENGINE + self._composition + policy_line + KEYS.format(more=more)
        self.config.write_text(text, encoding="utf-8")

    def wait_for(self, text: str, *, behind: int = 0) -> None:
        """Until the log has a text; the test's own time limit ends it otherwise."""
        while text not in self.log[behind:]:
            assert self.process.poll() is None, self.log
            time.sleep(0.05)

    def ask(self, key: str, weights: Any = None, **fields: Any) -> tuple[int, str]:
        """Status and code of a short completion."""
        body = {"model": "toy", "prompt": "abc", "max_tokens": 2, **fields}
        if weights is not None:
            body["eft_reward_weights"] = weights
        reply = httpx.post(f"{self.url}/v1/completions", json=body, headers={"x-api-key": key}, timeout=60)
        return reply.status_code, reply.json().get("error", {}).get("code") or "ok"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    """A process that serves a toy with two pairs."""
    folder = tmp_path_factory.mktemp("operated")
    for name, hidden_size in (("base", 64), ("tuned", 32), ("reference", 32)):
        model = make_model("llama", hidden_size=hidden_size, seed=len(name), context_len=4096)
        model.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    server = Operated(folder)
    yield server
    server.process.kill()
    server.process.wait()


OK, FORBIDDEN, UNKNOWN = (200, "ok"), (403, "weight_forbidden"), (401, "invalid_api_key")


def test_policies_of_composition_and_key(server: Operated) -> None:
    assert server.ask("plain-key") == OK
    assert server.ask("plain-key", {"harmless": -1.0}) == OK
    assert server.ask("plain-key", {"helpful": -1.0}) == FORBIDDEN
    assert server.ask("plain-key", {"helpful": 2.5}) == FORBIDDEN
    assert server.ask("research-key", {"helpful": -7.0, "harmless": -1.0}) == OK
    assert server.ask("research-key", {"harmless": -1.5}) == FORBIDDEN
    assert server.ask("small-key", {"helpful": 1.0}) == OK
    assert server.ask("small-key", {"helpful": 0.5}) == FORBIDDEN
    assert server.ask("nobody") == UNKNOWN


def test_limits_of_a_key_hold_and_are_given_back(server: Operated) -> None:
    assert server.ask("small-key", n=3) == (400, "too_many_answers")
    assert server.ask("small-key", max_tokens=3001) == (400, "too_many_tokens")
    assert server.ask("small-key", n=2, max_tokens=1499) == (400, "too_many_tokens"), "the prompt counts, twice"
    body = {**LONG, "max_tokens": 2800}
    headers = {"x-api-key": "small-key"}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers=headers, timeout=60) as running:
        lines = running.iter_lines()  # kept: an iterator that is dropped closes the connection
        next(lines)
        assert server.ask("small-key", max_tokens=199) == (429, "key_limit_exceeded"), "tokens"
        assert server.ask("small-key", n=2) == (429, "key_limit_exceeded"), "answers"
        assert server.ask("small-key", max_tokens=2) == OK
    for _ in range(100):  # until the server sees that the stream was left
        if server.ask("small-key", n=2, max_tokens=150) == OK:
            return
        time.sleep(0.05)
    raise AssertionError("what the stream held was not given back")


def test_burst_inside_the_queue_is_never_refused_by_the_engine(server: Operated) -> None:
    assert server.ask("plain-key", n=5, max_tokens=20) == OK, "more than the engine steps, at once"


def test_file_that_changes_is_read_and_running_requests_of_a_key_that_went_end_whole(server: Operated) -> None:
    before = len(server.log)
    server.write(policy='"free"', more=ONE_MORE)
    server.wait_for("new: newcomer; gone: none", behind=before)
    assert server.ask("newcomer-key", {"harmless": -9.0}) == OK
    body = {**LONG, "max_tokens": 400}
    headers = {"x-api-key": "newcomer-key"}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers=headers, timeout=60) as running:
        lines = running.iter_lines()
        next(lines)
        before = len(server.log)
        server.write()
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("new: none; gone: newcomer", behind=before)
        assert server.ask("newcomer-key") == UNKNOWN
        assert server.ask("plain-key", {"harmless": -9.0}) == FORBIDDEN
        assert [line for line in lines if line][-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[keys]\n", "Expected"),
        ('[[keys]]\nname = "a b"\nkey = "x"\n', "String should match pattern"),
        ('[[keys]]\nname = "x"\nkey = "x"\ncompositions = ["other"]\n', "may use 'other', and this server has toy"),
        ('[[keys]]\nname = "x"\nkey = "x"\nweight_policy = { other = "free" }\n', "has a rule for 'other'"),
        ('[[keys]]\nname = "x"\nkey = "plain-key"\n', "the same key"),
        ('[[keys]]\nname = "x"\nkey = "x"\nweight_policy = [2, 1]\n', "the lower one first"),
    ],
)
def test_broken_file_leaves_what_was(server: Operated, text: str, reason: str) -> None:
    before = len(server.log)
    server.write(more=text)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("the old ones stay", behind=before)
    assert reason in server.log[before:]
    assert server.ask("plain-key") == OK
    server.write()


def test_what_needs_a_restart_is_named(server: Operated) -> None:
    before = len(server.log)
    server.write(top="default_max_tokens = 7\n", more='[[compositions]]\nname = "other"\npreset = "atlas"\n')
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("take effect with the next start", behind=before)
    assert "default_max_tokens, compositions.other" in server.log[before:]
    server.write()


def test_log_has_no_keys(server: Operated) -> None:
    assert not re.search(r"(plain|research|small|newcomer)-key", server.log)
    assert "Traceback" not in server.log
