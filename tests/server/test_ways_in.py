"""The ways into a real process: TLS, a unix socket, and a port that another one has."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.integrations.server.test_listening import certificate
from tests.server.process import SERVE, VICTIM, ServerProcess


def test_tls_with_and_without_a_client_s_certificate(flags: list[str], tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    own_cert, own_key = certificate(tmp_path, "client")
    files = ["--ssl-certfile", str(cert), "--ssl-keyfile", str(key), "--ssl-ca-certs", str(own_cert)]
    server = ServerProcess([*flags, "--port", "0", "--head-timeout-s", "2", *files])
    try:
        assert server.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(cert))
        with pytest.raises(httpx.TransportError):  # TLS 1.3 says it with the first answer
            httpx.get(f"{server.url}/health", verify=trusting, trust_env=False)
        trusting.load_cert_chain(own_cert, own_key)
        with httpx.Client(base_url=server.url, verify=trusting, trust_env=False, timeout=60) as client:
            assert client.get("/health").json() == {"status": "ok"}
            large = client.post("/tokenize", json={"model": "toy", "prompt": "a" * 700_000})
            assert large.status_code < 500
            with client.stream("POST", "/v1/completions", json={**VICTIM, "stream": True}) as response:
                assert "[DONE]" in "".join(response.iter_text())
        with socket.create_connection(server.address, timeout=30) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" not in plain.recv(1000)
        with trusting.wrap_socket(
            socket.create_connection(server.address, timeout=30), server_hostname="localhost"
        ) as slow:
            slow.sendall(b"GET /hea")
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")
        server.check_log()
    finally:
        server.stop()


def test_unix_socket_serves_its_owner_and_is_gone_afterwards(flags: list[str], tmp_path: Path) -> None:
    path = tmp_path / "eft.sock"
    server = ServerProcess([*flags, "--uds", str(path)])
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with httpx.Client(
            base_url="http://any.name", transport=httpx.HTTPTransport(uds=str(path)), timeout=60
        ) as client:
            assert server.ask(client)
        server.check_log()
    finally:
        server.stop()
    assert not path.exists()


def test_port_in_use_ends_a_second_process_in_one_line_before_it_loads(flags: list[str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code = "import sys; from eft_engine.cli import main; sys.argv = ['eft', *sys.argv[1:]]; main()"
        ran = subprocess.run(
            [
                sys.executable,
                "-c",
                code,
                "serve",
                "--base",
                str(tmp_path / "no-model"),
                "--tuned",
                "t",
                "--reference",
                "r",
                "--port",
                port,
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=120,
            check=False,
        )
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith(f"error: 127.0.0.1:{port} is in use by another program")
    assert SERVE not in ran.stderr
