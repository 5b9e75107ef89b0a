"""nginx and Caddy with the words of docs/deployment.md, before a server on a unix socket."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from eft_integrations.backends.replies import Gate, Gated
from eft_integrations.backends.scripted import ScriptedBackend
from tests.integrations.server.serving import make_app

DOCS = (Path(__file__).parents[2] / "docs/deployment.md").read_text()
SOCKET = "/run/eft/eft.sock"
NGINX = """{user} daemon off; pid {folder}/nginx.pid; error_log stderr; events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; {told} }}
}}
"""
CADDY = """{{
    admin off
    auto_https off
}}
http://127.0.0.1:{port} {{
{told}}}
"""


def snippet(proxy: str) -> str:
    """What the page tells to write."""
    found = re.search(rf"^{proxy}:\n\n```\n(.*?)```$", DOCS, re.MULTILINE | re.DOTALL)
    assert found is not None
    assert SOCKET in found[1]
    return found[1]


@contextlib.contextmanager
def behind(proxy: str, folder: Path, gate: Gate) -> Iterator[str]:
    """A server whose answers stop at the gate, and the proxy before it; gives the address that the proxy has for it."""
    program = shutil.which(proxy.lower(), path="/usr/sbin:/usr/bin:/usr/local/bin")
    assert program, f"{proxy} is not here: `make test-deploy` installs it"
    path = folder / "eft.sock"
    app = make_app({"m": ScriptedBackend(lambda request: Gated("one two three", gate, after=1))})
    server = uvicorn.Server(uvicorn.Config(app, uds=str(path), log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    form = NGINX if proxy == "nginx" else CADDY
    file = folder / "configuration"
    user = "user root;" if os.geteuid() == 0 else ""  # pytest's folders are its user's alone
    told = snippet(proxy).replace(SOCKET, str(path))
    file.write_text(form.format(folder=folder, port=port, told=told, user=user))
    flags = ["-c", str(file)] if proxy == "nginx" else ["run", "--adapter", "caddyfile", "--config", str(file)]
    running = subprocess.Popen([program, *flags], stderr=subprocess.PIPE, env={"HOME": str(folder)})
    try:
        for _ in range(300):
            if path.exists() and running.poll() is None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
            time.sleep(0.05)
        else:
            running.kill()
            raise AssertionError(running.communicate()[1].decode())
        yield f"http://127.0.0.1:{port}/eft"
    finally:
        running.terminate()
        running.wait(30)
        server.should_exit = True
        thread.join(30)


@pytest.mark.parametrize("proxy", ["nginx", "Caddy"])
def test_answers_stream_through_a_proxy_and_under_its_prefix(proxy: str, tmp_path: Path) -> None:
    gate = Gate()
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with (
        behind(proxy, tmp_path, gate) as url,
        httpx.Client(timeout=30, trust_env=False) as client,
    ):
        page = client.get(f"{url}/").raise_for_status()
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        for name in re.findall(r"(?:href|src)=\"(page/[^\"]+)\"", page.text):
            client.get(f"{url}/{name}").raise_for_status()
        with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()
            text = ""
            for line in lines:
                text += content(line)
                if "one" in text:
                    break
            assert not gate.is_open, "the first word came before there was a second"
            gate.open()
            text += "".join(content(line) for line in lines)
        assert text == "one two three"
        large = {**body, "messages": [{"role": "user", "content": "x" * 2_000_000}]}
        refused = client.post(f"{url}/v1/chat/completions", json=large)
        assert refused.headers.get("x-request-id"), "the server itself has read it"


def content(line: str) -> str:
    """The text of one line of a stream."""
    if not line.startswith("data: {"):
        return ""
    choices = json.loads(line.removeprefix("data: "))["choices"]
    return str(choices[0]["delta"].get("content") or "") if choices else ""
