"""What can be done to a connection: each row plays a client that never finishes, never reads, or does not speak HTTP.

A row returns when the server has done with it, and asserts how: with which answer, or that it let go.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil

PATIENCE_S = 30.0
"""Within this a server whose limits are two seconds has let go of everybody."""

STREAM: dict[str, Any] = {
    "model": "toy", "prompt": "abc", "max_tokens": 900, "ignore_eos": True, "stream": True, "logprobs": 20
}  # fmt: skip
"""An answer of more than half a megabyte."""


@dataclass(frozen=True)
class Target:
    """Where the server is, and the key that the attacker has."""

    address: tuple[str, int]
    key: str | None = None

    def connection(self) -> socket.socket:
        """A new one."""
        made = socket.create_connection(self.address, timeout=PATIENCE_S)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def head(self, path: str = "/v1/completions", *headers: str, method: str = "POST") -> bytes:
        """The head of a request, with the key; without the empty line at its end."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
        if self.key is not None:
            lines.append(f"Authorization: Bearer {self.key}")
        return ("\r\n".join(lines) + "\r\n").encode()

    def request(self, body: dict[str, Any], path: str = "/v1/completions") -> bytes:
        """A whole request."""
        data = json.dumps(body).encode()
        return self.head(path, f"Content-Length: {len(data)}") + b"\r\n" + data


Wire = Callable[[Target], None]
WIRES: dict[str, Wire] = {}


def wire(name: str) -> Callable[[Wire], Wire]:
    """Add a row."""

    def add(attack: Wire) -> Wire:
        assert name not in WIRES, f"two rows are called {name!r}"
        WIRES[name] = attack
        return attack

    return add


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes; a reset is an end too."""
    read = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            read += piece
    return read


def send_all(connection: socket.socket, pieces: Iterable[bytes]) -> None:
    """Send until all is sent or the server wants no more."""
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            connection.sendall(piece)


def status(answer: bytes) -> int:
    """The status of an answer; 0: there was none."""
    found = re.match(rb"HTTP/1\.1 (\d{3})", answer)
    return int(found[1]) if found else 0


def typed(answer: bytes, expected: int, code: str | None = None) -> None:
    """Check that an answer has this status and a typed error."""
    _, _, body = answer.partition(b"\r\n\r\n")
    assert status(answer) == expected, answer[:300]
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert code is None or error["code"] == code, error


def refused(target: Target, data: bytes, expected: int = 400, code: str | None = "invalid_http") -> None:
    """Send it and see it refused, and the connection closed."""
    with target.connection() as connection:
        send_all(connection, [data])
        typed(read_all(connection), expected, code)


def below_500(target: Target, data: bytes) -> bytes:
    """Send it, end the sending half, and see an answer that is no fault of the server."""
    with target.connection() as connection:
        send_all(connection, [data])
        answer = read_all(connection)
    assert 0 < status(answer) < 500, answer[:300]
    return answer


def let_go(connections: Iterable[socket.socket]) -> None:
    """Wait until the server has ended all of them."""
    for connection in connections:
        read_all(connection)
        connection.close()


@contextlib.contextmanager
def many(target: Target, count: int) -> Iterator[list[socket.socket]]:
    """Connections, closed at the end."""
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            made.append(target.connection())
        yield made
    finally:
        for connection in made:
            connection.close()


def dripping(connection: socket.socket, data: bytes, every_s: float) -> None:
    """Send byte after byte until the server has enough."""
    connection.settimeout(every_s)
    deadline = time.monotonic() + PATIENCE_S
    for byte in data:
        assert time.monotonic() < deadline, "the server lets a client take its time"
        try:
            connection.send(bytes([byte]))
            if connection.recv(1) is not None:  # an answer, or the end
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    connection.settimeout(PATIENCE_S)


# ---- clients that never finish ---------------------------------------------------------------------------------------------


@wire("a connection and nothing more")
def _(target: Target) -> None:
    with target.connection() as connection:
        typed(read_all(connection), 408, "head_timeout")


@wire("200 heads of which a byte comes now and then")
def _(target: Target) -> None:
    with many(target, 200) as connections:
        for connection in connections:
            send_all(connection, [b"POST /v1/completions HTTP/1.1\r\nHost: loc"])
        dripping(connections[0], b"a" * 1000, 0.2)
        let_go(connections)


@wire("a head that never ends, after an answer on the same connection")
def _(target: Target) -> None:
    with target.connection() as connection:
        connection.sendall(target.head("/health", method="GET") + b"\r\n")
        connection.sendall(b"GET /hea")
        first, second = re.split(rb"(?<!^)(?=HTTP/1\.1)", read_all(connection))
    assert status(first) == 200
    typed(second, 408, "head_timeout")


@wire("half a body")
def _(target: Target) -> None:
    refused(target, target.head("/v1/completions", "Content-Length: 1000") + b'\r\n{"model', 408, "receive_timeout")


@wire("half a body, and the client leaves")
def _(target: Target) -> None:
    with many(target, 50) as connections:
        for connection in connections:
            connection.sendall(target.head("/v1/completions", "Content-Length: 1000") + b'\r\n{"model')


@wire("a body of which a byte comes now and then")
def _(target: Target) -> None:
    with many(target, 20) as connections:
        for connection in connections:
            connection.sendall(target.head("/v1/completions", "Content-Length: 100000") + b"\r\n")
        dripping(connections[0], b" " * 100_000, 0.2)
        let_go(connections)


@wire("a body in chunks that never ends")
def _(target: Target) -> None:
    with target.connection() as connection:
        connection.sendall(target.head("/v1/completions", "Transfer-Encoding: chunked") + b"\r\n")
        dripping(connection, b"1\r\n \r\n" * 1000, 0.05)
        let_go([connection])


@wire("a body that is awaited (100-continue) and does not come")
def _(target: Target) -> None:
    with target.connection() as connection:
        connection.sendall(target.head("/v1/completions", "Content-Length: 10", "Expect: 100-continue") + b"\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 100"), answer[:100]
    typed(answer.partition(b"\r\n\r\n")[2], 408, "receive_timeout")


@wire("a body without end to a path that reads none")
def _(target: Target) -> None:
    with target.connection() as connection:
        send_all(connection, [target.head("/health", "Content-Length: 99999999999", method="GET") + b"\r\n"])
        send_all(connection, (b" " * 65536 for _ in range(2000)))
        let_go([connection])


@wire("a body without end to a path that is not there, in chunks")
def _(target: Target) -> None:
    with target.connection() as connection:
        send_all(connection, [target.head("/nowhere", "Transfer-Encoding: chunked") + b"\r\n"])
        send_all(connection, (b"1\r\n \r\n" * 4096 for _ in range(200)))
        let_go([connection])


@wire("20 bodies of 8 MB at once")
def _(target: Target) -> None:
    def send() -> None:
        body = b'{"model": "toy", "max_tokens": 0, "prompt": "' + b"a" * 8_000_000 + b'"}'
        with target.connection() as connection:
            connection.settimeout(120)
            head = target.head("/v1/completions", f"Content-Length: {len(body)}", "Connection: close")
            send_all(connection, [head + b"\r\n", body])
            assert status(read_all(connection)) < 500  # 0: cut while it was sent

    at_once(send, 20)


@wire("five bodies of 64 MB without a key")
def _(target: Target) -> None:
    def send() -> None:
        with target.connection() as connection:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 67108864\r\n\r\n"
            send_all(connection, [head, *(b" " * 65536 for _ in range(1024))])
            assert status(read_all(connection)) in (401, 413, 0)

    at_once(send, 5)


# ---- clients that never read -----------------------------------------------------------------------------------------------


@wire("a stream that nobody reads")
def _(target: Target) -> None:
    unread(target, 1)


@wire("ten streams that nobody reads")
def _(target: Target) -> None:
    unread(target, 10)


def unread(target: Target, count: int) -> None:
    """Streams that nobody reads; the server must let go of them, whether it cut them or had sent all."""
    with many(target, count) as connections:
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(target.request(STREAM))
        deadline = time.monotonic() + PATIENCE_S * 2
        for connection in connections:
            while not is_let_go(connection):
                assert time.monotonic() < deadline, "a stream that nobody reads stays open"
                time.sleep(0.1)


def is_let_go(connection: socket.socket) -> bool:
    """Whether the server has ended a connection, also where the system still offers what was not read of its last answer."""
    own = connection.getsockname()
    others = [other for other in psutil.net_connections("tcp") if other.raddr and tuple(other.raddr) == own]
    return not any(other.status == psutil.CONN_ESTABLISHED for other in others)


@wire("a stream of which a byte is read now and then")
def _(target: Target) -> None:
    with target.connection() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(target.request(STREAM))
        deadline = time.monotonic() + PATIENCE_S * 2
        while not is_let_go(connection):
            connection.recv(1)
            assert time.monotonic() < deadline, "the server lets a client take its time"
            time.sleep(0.2)


@wire("1,000 answers on one connection that nobody reads")
def _(target: Target) -> None:
    with target.connection() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(8.0)
        with contextlib.suppress(ConnectionError, TimeoutError):
            connection.sendall((target.head("/openapi.json", method="GET") + b"\r\n") * 1000)
        deadline = time.monotonic() + PATIENCE_S
        while not is_let_go(connection):
            assert time.monotonic() < deadline, "answers that nobody reads keep a connection open"
            time.sleep(0.1)


# ---- many clients ----------------------------------------------------------------------------------------------------------


def at_once(work: Callable[[], None], count: int) -> None:
    """The same in so many threads; what one of them finds wrong is raised."""
    wrong: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]


@wire("1,000 connections and nothing more")
def _(target: Target) -> None:
    with many(target, 1000) as connections:
        time.sleep(1.0)
        let_go(connections)


@wire("1,000 connections that each begin a body")
def _(target: Target) -> None:
    with many(target, 1000) as connections:
        for connection in connections:
            send_all(connection, [target.head("/v1/completions", "Content-Length: 100") + b"\r\n{"])
        let_go(connections)


@wire("1,000 connections that are reset at once")
def _(target: Target) -> None:
    for _ in range(1000):
        reset(target.connection())


def reset(connection: socket.socket) -> None:
    """Close it as the system of a killed client does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@wire("50 streams whose clients are killed")
def _(target: Target) -> None:
    def begin() -> None:
        connection = target.connection()
        connection.sendall(target.request(STREAM))
        connection.recv(100)
        reset(connection)

    at_once(begin, 50)


@wire("400 requests of one key at once")
def _(target: Target) -> None:
    statuses: list[int] = []

    def ask() -> None:
        with target.connection() as connection:
            connection.sendall(target.request({"model": "toy", "prompt": "abc", "max_tokens": 4, "ignore_eos": True}))
            with contextlib.suppress(ConnectionError):  # its connection made room for another
                statuses.append(status(connection.recv(65536)))

    at_once(ask, 400)
    assert set(statuses) <= {200, 429}, statuses
    assert statuses.count(200) > 0


@wire("2,000 requests without a key on one connection")
def _(target: Target) -> None:
    request = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with target.connection() as connection:
        sender = threading.Thread(
            target=send_all, args=(connection, [request * 1999, request[:-2], b"Connection: close\r\n\r\n"])
        )
        sender.start()
        answers = read_all(connection)
        sender.join()
    assert answers.count(b"HTTP/1.1 401") == 2000


# ---- what is no HTTP, or hardly ----------------------------------------------------------------------------------------------


@wire("a megabyte of garbage")
def _(target: Target) -> None:
    refused(target, bytes(range(256)) * 4096)


@wire("a greeting in TLS")
def _(target: Target) -> None:
    refused(target, bytes.fromhex("16030100f1010000ed0303") + b"\x00" * 200)


@wire("HTTP/2 without asking")
def _(target: Target) -> None:
    below_500(target, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 100)


@wire("HTTP/0.9")
def _(target: Target) -> None:
    refused(target, b"GET /\r\n\r\n")


@wire("lines without an end")
def _(target: Target) -> None:
    refused(target, b"GET /" + b"a" * 1_000_000)


@wire("a header of 100 KB")
def _(target: Target) -> None:
    refused(target, target.head("/health", "X-Long: " + "a" * 100_000, method="GET") + b"\r\n")


@wire("50,000 headers")
def _(target: Target) -> None:
    refused(target, target.head("/health", *["a: b"] * 50_000, method="GET") + b"\r\n")


@wire("a header with a zero byte")
def _(target: Target) -> None:
    refused(target, target.head("/health", "X: a\0b", method="GET") + b"\r\n")


@wire("no Host, and two of them")
def _(target: Target) -> None:
    refused(target, b"GET /health HTTP/1.1\r\n\r\n")
    refused(target, target.head("/health", "Host: other", method="GET") + b"\r\n")


@wire("a length below zero, of letters, and two lengths")
def _(target: Target) -> None:
    for lengths in (["-1"], ["ten"], ["1", "2"], ["1, 2"], ["9" * 30]):
        refused(target, target.head("/v1/completions", *[f"Content-Length: {n}" for n in lengths]) + b"\r\n{}")


@wire("a length of a million terabytes")
def _(target: Target) -> None:
    with target.connection() as connection:
        connection.sendall(target.head("/v1/completions", f"Content-Length: {10**18}") + b"\r\n{")
        typed(read_all(connection), 413, "body_too_large")


@wire("an encoding of the transfer that is not known")
def _(target: Target) -> None:
    refused(target, target.head("/v1/completions", "Transfer-Encoding: gzip") + b"\r\nabc")


@wire("chunks and a length")
def _(target: Target) -> None:
    both = target.head("/v1/completions", "Content-Length: 3", "Transfer-Encoding: chunked", "Connection: close")
    below_500(target, both + b"\r\n2\r\n{}\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n")


@wire("chunks whose length is none")
def _(target: Target) -> None:
    for length in (b"-1", b"xyz", b"f" * 30, b"1;" + b"a" * 100_000):
        refused(target, target.head("/v1/completions", "Transfer-Encoding: chunked") + b"\r\n" + length + b"\r\n{}\r\n")


@wire("a million chunks of one byte")
def _(target: Target) -> None:
    with target.connection() as connection:
        connection.sendall(target.head("/v1/completions", "Transfer-Encoding: chunked") + b"\r\n")
        send_all(connection, (b"1\r\n \r\n" * 10_000 for _ in range(100)))
        answer = read_all(connection)
    assert status(answer) in (400, 0), answer[:300]  # 0: reset before the answer could be read


@wire("10,000 trailers behind a body in chunks")
def _(target: Target) -> None:
    data = target.head("/v1/completions", "Transfer-Encoding: chunked") + b"\r\n2\r\n{}\r\n0\r\n" + b"a: b\r\n" * 10_000
    refused(target, data + b"\r\n")


@wire("HTTP/1.0 without a Host")
def _(target: Target) -> None:
    assert status(below_500(target, b"GET /health HTTP/1.0\r\n\r\n")) == 200


@wire("HEAD, OPTIONS, TRACE, CONNECT and a method that is not known")
def _(target: Target) -> None:
    for method in ("HEAD", "OPTIONS", "TRACE", "CONNECT", "BREW", "PROPFIND"):
        for path in ("/health", "/v1/completions", "*"):
            head = target.head(path, "Connection: close", method=method)
            assert method != "HEAD" or below_500(target, head + b"\r\n").endswith(b"\r\n\r\n"), "HEAD has no body"
            below_500(target, head + b"\r\n")


@wire("paths of many kinds")
def _(target: Target) -> None:
    for path in (
        "/" + "a" * 8000,
        "//",
        "/%00",
        "/..%2f..%2fetc/passwd",
        "/v1/models/" + "%ff" * 500,
        "/?" + "a=b&" * 2000,
    ):
        below_500(target, target.head(path, "Connection: close", method="GET") + b"\r\n")
    below_500(target, target.head("http://other.example/health", "Connection: close", method="GET") + b"\r\n")


@wire("asking for WebSocket and for HTTP/2 by the way")
def _(target: Target) -> None:
    for kind in ("websocket", "h2c"):
        head = target.head("/health", f"Upgrade: {kind}", "Connection: Upgrade", method="GET")
        with target.connection() as connection:
            connection.sendall(head + b"\r\n")
            assert status(connection.recv(65536)) == 200


@wire("500 requests on one connection, written at once")
def _(target: Target) -> None:
    with target.connection() as connection:
        requests = [target.head("/health", method="GET") + b"\r\n"] * 499
        requests.append(target.head("/health", "Connection: close", method="GET") + b"\r\n")
        sender = threading.Thread(target=send_all, args=(connection, [b"".join(requests)]))
        sender.start()
        answers = read_all(connection)
        sender.join()
    assert answers.count(b"HTTP/1.1 200") == 500


@wire("garbage behind a request that is being answered")
def _(target: Target) -> None:
    with target.connection() as connection:
        connection.sendall(target.request({**STREAM, "max_tokens": 20}) + b"\0garbage\r\n\r\n")
        answer = read_all(connection)
    assert status(answer) == 200
    assert b"[DONE]" in answer


@wire("a body that is compressed")
def _(target: Target) -> None:
    import gzip

    bomb = gzip.compress(b" " * 50_000_000)
    head = target.head("/v1/completions", f"Content-Length: {len(bomb)}", "Content-Encoding: gzip", "Connection: close")
    typed(below_500(target, head + b"\r\n" + bomb), 400)


@wire("heads that carry weights, ids and keys of 10 KB")
def _(target: Target) -> None:
    body = json.dumps({"model": "toy", "prompt": "a", "max_tokens": 1}).encode()
    for name in ("X-EFT-Reward-Weights", "X-Request-Id", "X-Api-Key", "traceparent", "Cookie", "X-Forwarded-For"):
        head = target.head(
            "/v1/completions", f"{name}: {'=,' * 5000}", f"Content-Length: {len(body)}", "Connection: close"
        )
        below_500(target, head + b"\r\n" + body)
