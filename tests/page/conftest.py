"""The page in a real browser, against a real server in the project's own environment; `make test-page` runs it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SERVER_PYTHON = os.environ.get("EFT_SERVER_PYTHON", str(ROOT / ".venv/bin/python"))

collect_ignore_glob = [] if importlib.util.find_spec("playwright") is not None else ["test_*.py"]


class Addresses(NamedTuple):
    """Of servers: without a key, with one, and under a prefix."""

    free: str
    locked: str
    prefixed: str


@pytest.fixture(scope="session")
def addresses() -> Iterator[Addresses]:
    """Running servers."""
    process = subprocess.Popen(
        [SERVER_PYTHON, "-m", "tests.page.server"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    told = process.stdout.readline().split()
    assert len(told) == 3, "the servers did not start; the error is above"
    yield Addresses(*told)
    process.stdin.close()
    process.wait(60)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("EFT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "there is no chromium here: install it, or name it by EFT_CHROMIUM"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def context(browser: Any, addresses: Addresses) -> Iterator[Any]:
    """A fresh browser session that keeps what was asked and what the console said, and judges both at the end."""
    session = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    session.set_default_timeout(15_000)
    session.asked, session.told = [], []
    session.on("request", lambda request: session.asked.append(request))
    session.on("console", lambda message: session.told.append(message.text))
    session.on("weberror", lambda error: session.told.append(f"uncaught: {error.error}"))
    yield session
    session.close()
    outside = [own.url for own in session.asked if not own.url.startswith(tuple(_origin(own) for own in addresses))]
    assert not outside
    bad = [text for text in session.told if "Content Security Policy" in text or text.startswith("uncaught")]
    assert not bad


def _origin(url: str) -> str:
    return "/".join(url.split("/")[:3]) + "/"
