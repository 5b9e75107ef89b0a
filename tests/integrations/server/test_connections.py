"""Clients that are late, that do not read, and that are too many; `tests/server` has what else they can do."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from eft_integrations.backends.scripted import ScriptedBackend
from eft_integrations.server.entrance.connection_settings import ConnectionSettings
from eft_integrations.server.entrance.held_bodies import HeldBodies
from eft_integrations.server.settings import ServerSettings
from tests.integrations.server.serving import running

MB = 2**20
QUICK = ConnectionSettings(
    head_timeout_s=0.4, receive_timeout_s=0.4, send_timeout_s=0.4, max_connections=4, keep_alive_timeout_s=60
)
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    """A server that waits for nobody long."""
    with running({"m": ScriptedBackend(["w" * 3_000_000] * 10)}, ServerSettings(connections=QUICK)) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        yield host, int(port)


def answer_to(address: tuple[str, int], data: bytes) -> tuple[bytes, str | None]:
    """The first line of an answer and the code of its error, when the server has closed the connection."""
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(data)
        read = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = read.partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0], json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", b"408", "head_timeout"),
        (GET, b"408", "head_timeout"),
        (POST + b"{", b"408", "receive_timeout"),
        (b"\x16\x03\x01", b"400", "invalid_http"),
        (b"what is this\r\n\r\n", b"400", "invalid_http"),
        (GET + b"X: " + b"a" * 40_000, b"400", "invalid_http"),
        (
            POST.replace(b"Content-Length: 100", b"Transfer-Encoding: chunked") + b"1\r\n \r\n" * 200_000,
            b"400",
            "chunks_too_small",
        ),
    ],
    ids=["nothing", "half a head", "half a body", "the beginning of TLS", "no HTTP", "a long head", "small chunks"],
)
def test_client_that_does_not_do_its_part_is_told_and_let_go(
    address: tuple[str, int], data: bytes, status: bytes, code: str
) -> None:
    try:
        line, told = answer_to(address, data)
    except ConnectionResetError:
        assert code == "chunks_too_small", "reset with an answer on its way"  # it was still sending
        return
    assert line.startswith(b"HTTP/1.1 " + status)
    assert told == code


def test_answer_that_nobody_reads_is_thrown_away(address: tuple[str, int]) -> None:
    body = json.dumps({"model": "m", "prompt": "a"}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(address)
        connection.sendall(POST.replace(b"100", str(len(body)).encode()) + body)
        deadline = time.monotonic() + 20
        while connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1:  # established
            assert time.monotonic() < deadline, "it stays open"
            time.sleep(0.02)


def test_new_connection_takes_the_place_of_the_one_that_waited_longest(address: tuple[str, int]) -> None:
    idle = [socket.create_connection(address, timeout=20) for _ in range(4)]
    try:
        with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", trust_env=False) as client:
            assert client.get("/health").status_code == 200
        with pytest.raises(ConnectionResetError):
            idle[0].recv(1)
    finally:
        for connection in idle:
            connection.close()


async def test_large_bodies_wait_for_room_in_their_order() -> None:
    bodies = HeldBodies(10 * MB)
    got: list[str] = []
    ends = {name: asyncio.Event() for name in "abc"}

    async def hold(name: str, num_bytes: int) -> None:
        async with bodies.room(num_bytes):
            got.append(name)
            await ends[name].wait()

    tasks = [
        asyncio.create_task(hold(name, num_bytes)) for name, num_bytes in (("a", 8 * MB), ("b", 50 * MB), ("c", MB))
    ]
    await asyncio.sleep(0)
    async with bodies.room(1000):  # a small one does not wait
        assert got == ["a"]
    ends["a"].set()
    await tasks[0]
    await asyncio.sleep(0)
    assert got == ["a", "b"]  # it may have all there is, and c does not overtake it
    tasks[1].cancel()
    ends["c"].set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert got == ["a", "b", "c"]
