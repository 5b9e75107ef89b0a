"""The attack table: while one client does its worst, another is answered, whole and as if it were alone; then all is as before."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.server.bodies import ATTACKS
from tests.server.process import KEYS, ServerProcess
from tests.server.wires import WIRES, Target

MOST_GROWTH = 200 * 2**20
"""Bytes of memory that an attack may cost."""


class Victim:
    """A client that asks the same again and again, in a thread."""

    def __init__(self, server: ServerProcess, alone: str) -> None:
        self._server = server
        self._alone = alone
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.num_answers = 0
        self.wrong: list[str] = []

    def _ask(self) -> None:
        with self._server.client("victim") as client:
            while not self._ended.is_set() or not self.num_answers:
                try:
                    answer = self._server.ask(client)
                except (httpx.HTTPError, AssertionError) as error:
                    self.wrong.append(f"{type(error).__name__}: {error}")
                    return
                if answer != self._alone:
                    self.wrong.append(answer)
                    return
                self.num_answers += 1
                time.sleep(0.05)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Ask until the block ends, and once at least."""
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join(120)
            assert not self._thread.is_alive(), "the victim waits still"


@pytest.fixture(scope="module")
def alone(server: ServerProcess) -> str:
    """What the victim is answered without any attack."""
    with server.client("victim") as client:
        return server.ask(client)


@contextlib.contextmanager
def unharmed(server: ServerProcess, alone: str) -> Iterator[None]:
    """See that the block harms nobody."""
    before, num_lines = server.rss(), len(server.lines)
    victim = Victim(server, alone)
    with victim.asking():
        yield
    assert not victim.wrong, victim.wrong
    with server.client("victim") as client:
        assert server.ask(client) == alone
    server.wait_until_idle()
    assert server.process.poll() is None
    assert server.rss() - before < MOST_GROWTH
    server.check_log(since=num_lines)


@pytest.mark.parametrize("name", list(ATTACKS))
def test_body_harms_nobody(server: ServerProcess, alone: str, name: str) -> None:
    attack = ATTACKS[name]()
    with unharmed(server, alone), server.client("mallory", timeout=120) as client:
        response = client.post(attack.path, content=attack.body, headers=dict(attack.headers))
    assert response.status_code == attack.expected if attack.expected else response.status_code < 500, response.text[
        :500
    ]
    if response.status_code >= 400:
        error = response.json()["error"]
        assert {"message", "type", "code"} <= set(error)
        assert len(error["message"]) < 2000


@pytest.mark.parametrize("name", list(WIRES))
def test_connection_harms_nobody(server: ServerProcess, alone: str, name: str) -> None:
    with unharmed(server, alone):
        WIRES[name](Target(server.address, KEYS["mallory"]))


def test_table_is_as_long_as_it_is_said_to_be() -> None:
    assert len(ATTACKS) + len(WIRES) >= 40
